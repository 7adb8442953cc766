"""Steps 2 and 3 of the article: gates first imitate, then are trained together with the CNN, which is then frozen."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.models.checks import check_dataset, check_images, check_output
from prunegym.models.data.dataset import Augment, Dataset
from prunegym.models.gating.feature_kinds import DEFAULT_KINDS
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.importance import at_mac_share, channel_scores, keep_best
from prunegym.models.gating.static_policy import Policy, StaticPolicy, fixed_policy, rollout
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.precision import new_tensors_in
from prunegym.models.storage.run_state import load_state, save_state
from prunegym.models.storage.weights import fingerprint_of, load_tensors
from prunegym.models.training.cnn_training import Report, StageReport, answered, of_stage
from prunegym.models.training.mac_target import between, check_range, check_reachable, check_shares, meet_target
from prunegym.models.training.tuning import TuneConfig, tune
from prunegym.settings import check_types
from prunegym.validation import finite, share, typed, whole_number

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WIDEST = 2**20
"""Of the hidden layers and features of a policy; more would not fit any memory."""


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Settings of preparing a CNN with its gates, or (``tune.train_cnn`` False) of refining a frozen CNN's gates."""

    imitation: ImitationConfig | None = dataclasses.field(default_factory=lambda: ImitationConfig(kept_share=0.6))
    """None: no imitation; gates start from their bias."""
    tune: TuneConfig | None = dataclasses.field(default_factory=TuneConfig)
    """None: imitation only."""
    layerwise: bool = True
    hidden: int = 64
    grid: int = 4
    feature_size: int = 1088
    seed: int = 0
    """Of the new gates, and of the stages that set none themselves."""
    penalty_range: tuple[float, float] | None = None
    """If given, the policy is for all lambdas in this range, and gets lambda as an input."""
    kinds: tuple[str, ...] | None = None
    """Names of features in :data:`prunegym.models.gating.feature_kinds.FEATURES`; None: average and grid."""

    def __post_init__(self) -> None:
        """Check the policy; its range of lambdas and the names of its kinds are checked when it is made."""
        check_types(self)
        for name in ("hidden", "grid", "feature_size"):
            whole_number(name, getattr(self, name), 1, WIDEST)
        whole_number("seed", self.seed, 0)


StagesT = TypeVar("StagesT", bound="DataclassInstance")


def seeded(stages: StagesT, seed: int) -> StagesT:
    """Return a config whose stages, the configs in its fields, have this seed where they set none themselves."""
    inner = {field.name: getattr(stages, field.name) for field in dataclasses.fields(stages)}
    unset = {
        name: dataclasses.replace(one, seed=seed)
        for name, one in inner.items()
        if isinstance(one, ImitationConfig | TuneConfig) and one.seed is None
    }
    return dataclasses.replace(stages, **unset)


@typed
def new_policy(masked: MaskedCNN, dataset: Dataset, config: PrepareConfig) -> GatePolicy:
    """Return a policy with calibrated features and new heads. The global random state does not change."""
    features = MaskFeatures(masked, config.layerwise, config.grid, config.feature_size, config.kinds or DEFAULT_KINDS)
    features.calibrate(masked, dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return GatePolicy(features, config.hidden, penalty_range=config.penalty_range).to(masked.device)


@new_tensors_in()
@typed
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
        dataset: Training images. Without targets, gates learn to agree with the CNN without masks.
        config: The stages.
        policy: Gates to start from; by default new ones. A :class:`StaticPolicy` learns one mask for all images, with
            the same training: the static baseline. Without a MAC target it keeps channels with positive logits.
        teacher: Logits to distil from, see :func:`prunegym.models.training.tuning.tune`.
        folder: Folder of checkpoints. An interrupted call with the same arguments resumes from them.
        report: Called with the stage (``imitation`` or ``tune``) and its figures.

    Returns:
        The CNN, frozen, and its gates.

    Raises:
        InvalidInputError: If the CNN does not fit the data set's images or classes, or the MAC target is below what
            masks can reach.
    """
    check_dataset(dataset)
    config = seeded(config, config.seed)
    masked = (
        copy.deepcopy(network) if isinstance(network, MaskedCNN) else MaskedCNN(network, dataset.batch(torch.arange(1)))
    ).freeze()
    check_images(dataset, masked.image_shape)
    dataset = answered(dataset, masked)
    if config.tune is not None:
        check_output(dataset, masked.output_shape)
        check_reachable("target_macs", config.tune.target_macs, masked)
    policy = new_policy(masked, dataset, config) if policy is None else policy
    folder = None if folder is None else Path(folder)
    done = None if folder is None else folder / "imitation.safetensors"
    if config.imitation is not None:
        key = {
            "imitation": dataclasses.asdict(config.imitation), "seed": config.seed, "cnn": fingerprint_of(masked),
            "images": fingerprint_of(dataset), "gates": [list(tensor.shape) for tensor in policy.state_dict().values()],
        }  # fmt: skip
        stored = load_state(done) if done is not None and done.exists() else {}
        if done is not None and stored.get("key") == key:
            load_tensors(policy, stored.get("policy", {}), str(done))
        else:
            imitate(masked, policy, dataset, config.imitation, report=of_stage(report, "imitation"))
            if done is not None:
                save_state(done, {"key": key, "policy": policy.state_dict()})
    if config.tune is not None:
        checkpoint = None if folder is None else folder / "tune.safetensors"
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


@dataclasses.dataclass(frozen=True)
class ImitationConfig:
    """Settings of imitating the teacher."""

    steps: int = 600
    batch_size: int = 128
    kept_share: float = 0.7
    """Share of channels that the teacher keeps for each image. In the first half of the steps it is halfway to 1."""
    mac_share: float | Sequence[float] | None = None
    """If given, the teacher keeps channels for this share of the MACs instead. (The same share of channels has
    different MACs in different networks: in a plain one, the shares of neighbouring layers multiply.) For a policy
    with a range of lambdas give two shares, for the lowest and the highest lambda."""
    learning_rate: float = 3e-3
    augment: Augment = True
    seed: int | None = None
    """None: that of :class:`PrepareConfig`."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_types(self)
        whole_number("steps of imitation", self.steps)
        whole_number("batch_size of imitation", self.batch_size)
        finite("learning_rate of imitation", self.learning_rate, above=0)
        share("kept_share", self.kept_share)
        if self.seed is not None:
            whole_number("seed of imitation", self.seed, 0)
        if self.mac_share is not None:
            check_shares("mac_share", self.mac_share)

    def at(self, position: float) -> ImitationConfig:
        """Return the configuration for a lambda at a position (0 to 1) of its range."""
        return dataclasses.replace(self, mac_share=between(self.mac_share, position))


def teacher_mask(masked: MaskedCNN, scores: Tensor, config: ImitationConfig, easy: bool) -> Tensor:
    """Return the masks that are imitated.

    Args:
        masked: The CNN.
        scores: (batch, mask_size), see :func:`channel_scores`.
        config: The share to keep.
        easy: Keep more: halfway between the share and 1.

    Returns:
        (batch, mask_size) float32 of 0 and 1.
    """
    macs = between(config.mac_share, 0.5)
    wanted = config.kept_share if macs is None else macs
    # Halfway between the share and 1.
    wanted = (1 + wanted) / 2 if easy else wanted
    return keep_best(scores, wanted) if macs is None else at_mac_share(scores, masked, wanted).to(scores)


class FollowMask:
    """Chooses the bits of a given mask, decision by decision, and ignores the logits."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.used = 0

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the next bits (batch, width) of the mask."""
        first = self.used
        self.used += logits.shape[1]
        return self.mask[:, first : self.used]


def imitation_loss(policy: Policy, gate_logits: Tensor, mask: Tensor) -> Tensor:
    """Return the binary cross-entropy between a policy's logits and a teacher's mask, averaged over decisions."""
    # Binary cross-entropy -(m log p + (1 - m) log(1 - p)), with p = sigmoid(logit) and m the teacher's bit. The mean is
    # taken for each decision first, so that a gate of few channels counts as much as one of many.
    widths = [decision.width for decision in policy.decisions]
    losses = [
        F.binary_cross_entropy_with_logits(logits, target)
        for logits, target in zip(torch.split(gate_logits, widths, 1), torch.split(mask, widths, 1), strict=True)
    ]
    return torch.stack(losses).mean()


@new_tensors_in()
@typed
def imitate(
    masked: MaskedCNN,
    policy: Policy,
    dataset: Dataset,
    config: ImitationConfig,
    *,
    report: Report | None = None,
) -> None:
    """Train a policy, in place, to keep the teacher's channels. Its features are those under the teacher's masks.

    Args:
        masked: Frozen CNN.
        policy: Trained by Adam. A policy with a range of lambdas gets a random lambda at each step.
        dataset: Training images.
        config: Schedule.
        report: Called every 50 steps with ``step`` and ``loss``.

    Raises:
        InvalidInputError: If there are two MAC shares, but the policy is for one lambda.
    """
    bounds = check_range("mac_share", config.mac_share, policy)
    device = next(policy.parameters()).device
    dataset = dataset.augmenting(config.augment)
    generator = torch.Generator().manual_seed(config.seed or 0)
    optimizer = torch.optim.Adam(policy.parameters(), config.learning_rate)
    size = (min(config.batch_size, len(dataset)),)
    batches = (torch.randint(len(dataset), size, generator=generator) for _ in range(config.steps))
    for step, (_, images) in enumerate(dataset.stream(batches, device=device, augment=generator)):
        position = 0.5 if bounds is None else float(torch.rand((), generator=generator))
        easy = step < config.steps // 2
        mask = teacher_mask(masked, channel_scores(masked, images), config.at(position), easy)
        penalty = between(bounds, position)
        loss = imitation_loss(policy, rollout(masked, policy, images, FollowMask(mask), penalty).gate_logits, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if report is not None and (step + 1) % 50 == 0:
            report({"step": step + 1, "loss": loss.item()})
