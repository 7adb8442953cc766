"""Exact evaluation: every image of a split once, with the controls that tell whether masks depend on their image."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunegym.agents.evaluation.controls import (
    Difficulty,
    Usage,
    count_distinct,
    deal_out,
    difficulty,
    penalised_accuracy,
    static_mask,
    verdict,
)
from prunegym.agents.evaluation.mask_cache import Bench
from prunegym.agents.evaluation.masks import Agent, Decided, decide_dynamic, decide_fixed, is_masks, shown_penalty
from prunegym.agents.evaluation.predictors import PredictorOptions, decide_by_prediction
from prunegym.errors import InvalidInputError
from prunegym.models.catalog import Model, resolve_model
from prunegym.models.checks import check_dense, check_masked
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.model_file import Bundle, CNNInfo
from prunegym.models.timing.latency_table import LatencyTable
from prunegym.models.training.tuning import dense_logits
from prunegym.validation import finite, whole_number


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What an agent does on a split. Shares and accuracies are from 0 to 1 (a MAC share above 1 is possible).

    The fields up to ``images`` are the keys of :meth:`as_json`; accuracies are over all images.

    Attributes:
        accuracy: Of the CNN under the agent's masks.
        dense_accuracy: Of the original network, from which losses are counted.
        prepared_accuracy: Of the agent's own CNN with all channels on.
        kept_share: Kept channels / mask_size, mean.
        mac_share: MACs of the masked CNN / MACs of the original CNN, mean.
        policy_mac_share: MACs of deciding the mask / MACs of the original CNN.
        total_mac_share: The sum of the two.
        mac_share_std: Standard deviation of ``mac_share`` over images.
        distinct_masks: Number of different masks.
        static_accuracy: Of the static control, see :func:`prunegym.agents.evaluation.controls.static_mask`.
        shuffled_accuracy: Of the same masks dealt to other images.
        reward: accuracy - penalty * total_mac_share.
        images: Number of images.
        is_static: Whether it does not matter which image a mask was made for.
        verdict: The same as a sentence.
        usage: Channels always on, always off, conditional.
        difficulty: Whether compute follows difficulty.
        notes: What a reader has to know.
        masks: (images, mask_size) bool.
        total_mac_shares: (images,) float64, each image's total MAC share.
        correct: (images,) bool, to pair agents by image.
        logits: (images, classes) float32.
        latency_share: Time of the masked CNN and a dynamic CNN's policy / time with all channels on, by a table; None
            without one.
    """

    accuracy: float
    dense_accuracy: float
    prepared_accuracy: float
    kept_share: float
    mac_share: float
    policy_mac_share: float
    total_mac_share: float
    mac_share_std: float
    distinct_masks: int
    static_accuracy: float
    shuffled_accuracy: float
    reward: float
    images: int
    is_static: bool
    verdict: str
    usage: Usage
    difficulty: Difficulty
    notes: tuple[str, ...]
    masks: Tensor = dataclasses.field(repr=False)
    total_mac_shares: Tensor = dataclasses.field(repr=False)
    correct: Tensor = dataclasses.field(repr=False)
    logits: Tensor = dataclasses.field(repr=False)
    latency_share: float | None = None

    def as_json(self) -> dict[str, float | int]:
        """Return the figures, and nothing else, as ``prunegym evaluate --json`` prints them."""
        figures = {key: getattr(self, key) for key in JSON_KEYS}
        return figures if self.latency_share is None else {**figures, "latency_share": self.latency_share}


JSON_KEYS = (
    "accuracy", "dense_accuracy", "prepared_accuracy", "kept_share", "mac_share", "policy_mac_share",
    "total_mac_share", "mac_share_std", "distinct_masks", "static_accuracy", "shuffled_accuracy", "reward", "images",
)  # fmt: skip


@torch.no_grad()
def evaluate(
    agent: Agent,
    model: Model | None,
    dataset: Dataset,
    *,
    penalty: float = 0.5,
    layerwise: bool | None = None,
    device: str | torch.device | None = None,
    dense: nn.Module | None = None,
    batch_size: int = 250,
    options: PredictorOptions | None = None,
    latency: LatencyTable | None = None,
) -> Evaluation:
    """Evaluate an agent, deterministically, on every image of a split.

    Args:
        agent: A :class:`DynamicCNN`; a Stable-Baselines3 model; any object with a batched ``predict(observation) ->
            action`` or such a function; masks (mask_size,) or (images, mask_size), as array or baseline.
        model: The CNN that is masked. A dynamic CNN as agent brings its own, and ``model`` is not looked at.
        dataset: The split.
        penalty: lambda of the figure ``reward``; an agent that was trained for a range of them is shown it.
        layerwise: Whether the agent decides gate by gate; None: as its observation space or its attribute
            ``layerwise`` says, else all at once. Only for agents with ``predict``.
        device: Torch device, to which the model is moved; None: where it is.
        dense: The original network, where the model's was trained further. Without it the dense accuracy is that which
            the model file states for the very same images, else that of the CNN with all channels on.
        batch_size: Images in one forward pass.
        options: More on agents with ``predict``.
        latency: What masks cost in time; gives the figure ``latency_share``.

    Returns:
        The figures.

    Raises:
        InvalidInputError: If there is no model, it or ``dense`` does not fit the data set's images and classes, masks
            or the latency table are wrong, or training images are needed and not known.
        AgentError: If the agent fails or gives wrong actions.

    Example:
        >>> from prunegym.models import MaskedCNN, build, load_dataset
        >>> masked = MaskedCNN(build("simple-cnn", 10, 1, 8), torch.zeros(1, 1, 8, 8))
        >>> result = evaluate(torch.ones(48), masked, load_dataset("digits", "test"))
        >>> result.kept_share, result.total_mac_share, result.is_static, result.accuracy == result.dense_accuracy
        (1.0, 1.0, True, True)
    """
    if not isinstance(dataset, Dataset):
        raise InvalidInputError(
            f"The data set is {dataset!r}; a split is needed, as load_dataset('digits', 'test') returns it."
        )
    finite("penalty", penalty, 0)
    whole_number("batch_size", batch_size)
    given = dataset
    owner = resolve_model(agent if isinstance(agent, DynamicCNN) else model, lambda _info: {"evaluated": given})
    masked, dataset = owner.masked, owner.data["evaluated"]
    if latency is not None:
        latency.check(masked)
    check_masked(masked, dataset)
    if dense is not None:
        check_dense(dense, masked, dataset)
    if device is not None:
        masked.to(device)
        if owner.policy is not None:
            owner.policy.to(device)
    with _evaluating(masked):
        bench = Bench(masked, dataset, batch_size)
        options = options or PredictorOptions()
        decided = _decide(agent, owner, layerwise, batch_size, options, penalty)
        if decided.logits is not None:
            bench.add(decided.masks, decided.logits)
        full = bench(torch.ones(masked.mask_size, dtype=torch.bool))
        dense_accuracy, dense_logits, notes = _dense(dense, owner.info, full, dataset, batch_size)
        decided = dataclasses.replace(decided, notes=decided.notes + notes)
        result = _summary(decided, bench, full, dense_accuracy, dense_logits, penalty)
    if latency is None:
        return result
    # Only a model's own policy was timed; what another agent takes to decide is not known.
    deciding = latency.policy_share if isinstance(agent, DynamicCNN) else 0.0
    return dataclasses.replace(result, latency_share=latency.share(result.masks).mean().item() + deciding)


def _decide(
    agent: Agent,
    owner: Bundle,
    layerwise: bool | None,
    batch_size: int,
    options: PredictorOptions,
    penalty: float,
) -> Decided:
    dataset = owner.data["evaluated"]
    if isinstance(agent, DynamicCNN):
        shown = shown_penalty(agent.policy.penalty_range, options.agent_penalty, penalty)
        decided = decide_dynamic(agent, dataset, batch_size, shown)
        if shown in (None, penalty) or options.agent_penalty is not None:
            return decided
        low, high = agent.policy.penalty_range or (0.0, 0.0)
        note = (
            f"The policy is for lambda from {low:g} to {high:g} and was shown {shown:g}; the reward is at {penalty:g}."
        )
        return dataclasses.replace(decided, notes=(*decided.notes, note))
    if is_masks(agent):
        return decide_fixed(agent, owner.masked, dataset)  # type: ignore[arg-type]
    return decide_by_prediction(agent, owner, layerwise, batch_size, options, penalty)


@contextlib.contextmanager
def _evaluating(masked: MaskedCNN) -> Iterator[None]:
    was_training = masked.training
    masked.eval()
    try:
        yield
    finally:
        masked.train(was_training)


def _dense(
    dense: nn.Module | None, info: CNNInfo, full: Tensor, dataset: Dataset, batch_size: int
) -> tuple[float, Tensor, tuple[str, ...]]:
    if dense is not None:
        full = dense_logits(dense, dataset, batch_size).float()
        return _accuracy(full, dataset), full, ()
    stated = info.dense_accuracy(dataset)
    if stated is not None:
        return stated, full, ()
    note = "Dense accuracy is that of its own CNN with all channels on."
    return _accuracy(full, dataset), full, (note,)


def _accuracy(logits: Tensor, dataset: Dataset) -> float:
    return (logits.argmax(1) == dataset.labels).double().mean().item()


def _summary(
    decided: Decided, bench: Bench, full: Tensor, dense_accuracy: float, dense_logits: Tensor, penalty: float
) -> Evaluation:
    masked, dataset, masks = bench.masked, bench.dataset, decided.masks
    logits = bench(masks)
    static = bench(static_mask(masks, masked))
    shuffled = bench(masks[deal_out(len(masks))])
    correct = logits.argmax(1) == dataset.labels
    accuracy, mac_share = correct.double().mean().item(), masked.cost.mac_share(masks)
    policy_share = decided.macs / masked.cost.total_macs
    total = mac_share.mean().item() + policy_share
    distinct = count_distinct(masks)
    is_static, sentence = verdict(correct, shuffled.argmax(1) == dataset.labels, distinct)
    return Evaluation(
        accuracy=accuracy,
        dense_accuracy=dense_accuracy,
        prepared_accuracy=_accuracy(full, dataset),
        kept_share=masks.double().mean().item(),
        mac_share=mac_share.mean().item(),
        policy_mac_share=policy_share,
        total_mac_share=total,
        mac_share_std=mac_share.std(unbiased=False).item(),
        distinct_masks=distinct,
        static_accuracy=_accuracy(static, dataset),
        shuffled_accuracy=_accuracy(shuffled, dataset),
        reward=penalised_accuracy(correct, mac_share + policy_share, penalty).mean().item(),
        images=len(dataset),
        is_static=is_static,
        verdict=sentence,
        usage=Usage.of(masks),
        difficulty=difficulty(mac_share, dense_logits, dataset),
        notes=decided.notes,
        masks=masks,
        total_mac_shares=mac_share + policy_share,
        correct=correct,
        logits=logits,
    )
