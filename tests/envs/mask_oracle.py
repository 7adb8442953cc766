"""An oracle that masks the digits network by forward hooks and counts its cost by hand; it shares no code with ours."""

from __future__ import annotations

import torch

ONE_STEP, LAYERWISE = IDS = ("prunegym/ChannelMask-v0", "prunegym/LayerwiseChannelMask-v0")
WIDTHS = (16, 32)
FULL_MACS = 64 * 16 * 9 + 16 * 16 * 32 * 9 + 32 * 4 * 10


@torch.no_grad()
def hooked_logits(network, dataset, indices, mask):
    """The network under a mask (batch, 48), without MaskedCNN: a masked filter's output is zeroed behind the filter."""
    parts = dict(zip(("features.0", "features.3"), mask.float().split(WIDTHS, 1), strict=True))
    handles = [
        network.get_submodule(name).register_forward_hook(lambda _m, _i, out, part=part: out * part[:, :, None, None])
        for name, part in parts.items()
    ]
    logits = network(dataset.batch(torch.as_tensor(indices)))
    for handle in handles:
        handle.remove()
    return logits


def counted(mask):
    """Kept channels, weights and MAC share of a mask (batch, 48) on 8x8 images, by the layers' own formulas."""
    first, second = (part.double().sum(1) for part in mask.split(WIDTHS, 1))
    weights = first * 9 + first * second * 9 + second * 4 * 10
    macs = 64 * first * 9 + 16 * first * second * 9 + second * 4 * 10
    return first + second, weights, macs / FULL_MACS


def random_masks(count, seed=0, keep=0.7):
    return (torch.rand(count, sum(WIDTHS), generator=torch.Generator().manual_seed(seed)) < keep).float()


def layer_actions(mask):
    """A mask (batch, 48) as the actions of a layer-by-layer episode; bits past a gate's width are nonsense."""
    first, second = mask.numpy()[:, :16], mask.numpy()[:, 16:]
    return [torch.cat([torch.as_tensor(first), torch.full((len(mask), 16), 7.0)], 1).numpy(), second]


def actions_of(env_id, mask):
    """A mask (batch, 48) as the actions of an episode of either environment."""
    return [mask.numpy()] if env_id == ONE_STEP else layer_actions(mask)
