"""Steps 2 and 3 of the article: gates first imitate, then are trained together with the CNN, which is then frozen."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from prunegym.models.checks import check_images, check_output
from prunegym.models.data.dataset import Dataset
from prunegym.models.gating.feature_kinds import DEFAULT_KINDS
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.static_policy import Policy, StaticPolicy, fixed_policy
from prunegym.models.masking.importance import at_mac_share
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.weights import fingerprint_of, load_state, save_state
from prunegym.models.training.cnn_training import StageReport, of_stage
from prunegym.models.training.imitation import ImitationConfig, imitate
from prunegym.models.training.mac_target import meet_target
from prunegym.models.training.tuning import TuneConfig, tune


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How a CNN and its gates are prepared, or (``tune.train_cnn`` False) the gates of a frozen CNN refined."""

    imitation: ImitationConfig | None = dataclasses.field(default_factory=lambda: ImitationConfig(kept_share=0.6))
    """None: no imitation; gates start from their bias."""
    tune: TuneConfig | None = dataclasses.field(default_factory=TuneConfig)
    """None: imitation only."""
    layerwise: bool = True
    hidden: int = 64
    grid: int = 4
    feature_size: int = 1088
    seed: int = 0
    penalty_range: tuple[float, float] | None = None
    """If given, the policy works for all lambdas of this range, and gets one as input for each image."""
    kinds: tuple[str, ...] | None = None
    """Names of :data:`prunegym.models.gating.feature_kinds.FEATURES` that gates look at; None: average and grid."""


def new_policy(masked: MaskedCNN, dataset: Dataset, config: PrepareConfig) -> GatePolicy:
    """Return a policy with calibrated features and new heads. The global random state does not change."""
    features = MaskFeatures(masked, config.layerwise, config.grid, config.feature_size, config.kinds or DEFAULT_KINDS)
    features.calibrate(masked, dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return GatePolicy(features, config.hidden, penalty_range=config.penalty_range).to(masked.device)


def prepare(
    network: nn.Module | MaskedCNN,
    dataset: Dataset,
    config: PrepareConfig,
    *,
    policy: Policy | None = None,
    teacher: Tensor | None = None,
    folder: Path | str | None = None,
    report: StageReport | None = None,
) -> tuple[MaskedCNN, Policy]:
    """Make a masked CNN and its gates.

    Args:
        network: The trained CNN; it is copied.
        dataset: Training images.
        config: The stages.
        policy: Gates to start from; by default new ones. A :class:`StaticPolicy` learns one mask for all images, for as
            long and in the same way: the static baseline. Without a MAC target it keeps channels with positive logits.
        teacher: Logits to distil from, see :func:`prunegym.models.training.tuning.tune`.
        folder: Folder of checkpoints. An interrupted call with the same arguments resumes from them.
        report: Called with the stage (``imitation`` or ``tune``) and its figures.

    Returns:
        The CNN, frozen, and its gates.

    Raises:
        InvalidInputError: If the CNN does not fit the data set's images or classes.
    """
    masked = (
        copy.deepcopy(network) if isinstance(network, MaskedCNN) else MaskedCNN(network, dataset.batch(torch.arange(1)))
    ).freeze()
    check_images(dataset, masked.image_shape)
    if config.tune is not None:
        check_output(dataset, masked.output_shape)
    policy = new_policy(masked, dataset, config) if policy is None else policy
    folder = None if folder is None else Path(folder)
    done = None if folder is None else folder / "imitation.pt"
    if config.imitation is not None:
        key = {
            "imitation": dataclasses.asdict(config.imitation), "seed": config.seed, "cnn": fingerprint_of(masked),
            "images": fingerprint_of(dataset), "gates": [list(tensor.shape) for tensor in policy.state_dict().values()],
        }  # fmt: skip
        if done is not None and done.exists() and load_state(done)["key"] == key:
            policy.load_state_dict(load_state(done)["policy"])
        else:
            imitate(masked, policy, dataset, config.imitation, report=of_stage(report, "imitation"))
            if done is not None:
                save_state(done, {"key": key, "policy": policy.state_dict()})
    if config.tune is not None:
        checkpoint = None if folder is None else folder / "tune.pt"
        under = of_stage(report, "tune")
        tune(masked, policy, dataset, config.tune, teacher=teacher, checkpoint=checkpoint, report=under)
        if config.tune.train_gates and config.tune.target is not None:
            policy = _at_target(masked, policy, dataset, config.tune.target)
    return masked, policy


def _at_target(masked: MaskedCNN, policy: Policy, dataset: Dataset, target_macs: float) -> Policy:
    if isinstance(policy, StaticPolicy):
        return fixed_policy(masked, at_mac_share(policy.mask_logits(), masked, target_macs))
    meet_target(masked, policy, dataset, target_macs)
    return policy
