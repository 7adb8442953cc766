"""Exact evaluation: every image of a split once, with controls that show whether masks depend on their images."""

from __future__ import annotations

import contextlib
import dataclasses

import torch
from torch import Tensor, nn

from prunegym.agents.evaluation import masks as decisions
from prunegym.agents.evaluation.predictors import PredictorOptions, decide_by_prediction
from prunegym.html import table, words
from prunegym.models.catalog import Model, resolve_model
from prunegym.models.checks import check_dataset, check_dense, check_device, check_masked
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.storage.cnn_info import CNNInfo
from prunegym.models.timing.latency_table import LatencyTable
from prunegym.models.training.cnn_training import answered, dense_logits
from prunegym.validation import finite, whole_number


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of an agent on a split. Accuracies and shares are from 0 to 1; a total MAC share may exceed 1.

    The fields up to ``images``, all numbers, are the keys of :meth:`as_json`.

    Attributes:
        accuracy: Accuracy of the CNN under the agent's masks.
        dense_accuracy: Accuracy of the original network. Losses of accuracy are counted from it.
        prepared_accuracy: Accuracy of the agent's own CNN with all channels on.
        kept_share: Kept channels / mask_size, mean.
        mac_share: MACs of the masked CNN / MACs of the original CNN, mean.
        policy_mac_share: MACs of deciding the mask, and of adding constants for it, / MACs of the original CNN, mean.
        total_mac_share: The sum of the two.
        mac_share_std: Standard deviation of ``mac_share`` over images.
        distinct_masks: Number of different masks.
        static_accuracy: Accuracy of the static control, see :func:`prunegym.agents.evaluation.masks.static_mask`.
        shuffled_accuracy: Accuracy with the same masks, shuffled across images.
        reward: accuracy - penalty * total_mac_share.
        images: Number of images.
        is_static: Whether the policy is static, see :func:`prunegym.agents.evaluation.masks.verdict`.
        verdict: The same as a sentence.
        notes: Explanations that a reader of the figures needs.
        masks: (images, mask_size) bool.
        total_mac_shares: (images,) float64, each image's total MAC share.
        correct: (images,) bool, for comparing agents image by image.
        logits: (images, classes) float32.
        latency_share: Estimated time of the masked CNN and a dynamic CNN's policy, divided by the time with all
            channels on; None without a latency table.
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
    notes: tuple[str, ...]
    masks: Tensor = dataclasses.field(repr=False)
    total_mac_shares: Tensor = dataclasses.field(repr=False)
    correct: Tensor = dataclasses.field(repr=False)
    logits: Tensor = dataclasses.field(repr=False)
    latency_share: float | None = None

    def __repr__(self) -> str:
        """Return the main figures in a line; all are fields."""
        return (
            f"Evaluation({self.images:,} images: accuracy {self.accuracy:.4f} (dense {self.dense_accuracy:.4f}), "
            f"total MAC share {self.total_mac_share:.3f}, reward {self.reward:.4f}; static mask "
            f"{self.static_accuracy:.4f}, shuffled {self.shuffled_accuracy:.4f})"
        )

    def _repr_html_(self) -> str:
        rows = [(words(key), value) for key, value in self.as_json().items()]
        return table(("figure", "value"), rows, " ".join([self.verdict, *self.notes]))

    def as_json(self) -> dict[str, float | int]:
        """Return the figures that ``prunegym evaluate --json`` prints."""
        figures = {key: getattr(self, key) for key in JSON_KEYS}
        return figures if self.latency_share is None else {**figures, "latency_share": self.latency_share}


JSON_KEYS = tuple(field.name for field in dataclasses.fields(Evaluation) if field.type in ("float", "int"))


@torch.no_grad()
def evaluate(
    agent: decisions.Agent,
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
    """Evaluate an agent on every image of a split. Agents act deterministically.

    Args:
        agent: A :class:`DynamicCNN`, a Stable-Baselines3 model, an object with a batched ``predict(observation) ->
            action``, a function of that form, a baseline, or masks (mask_size,) or (images, mask_size).
        model: The CNN to mask. A dynamic CNN as agent has its own, and ``model`` is not used.
        dataset: The split.
        penalty: lambda in the figure ``reward``. An agent that was trained for a range of lambdas gets it as input.
        layerwise: Whether the agent decides gate by gate, for agents with ``predict``. By default the agent's
            observation space or its attribute ``layerwise`` decides; without both it decides all at once.
        device: Torch device to move the model to; None leaves it where it is.
        dense: The original network, if the model's CNN was trained further. Without it, the dense accuracy is the one
            that the model file records for exactly these images, or else that of the CNN with all channels on.
        batch_size: Images in one forward pass.
        options: More settings for agents with ``predict``.
        latency: Times of masked layers; adds the figure ``latency_share``.

    Returns:
        The figures.

    Raises:
        InvalidInputError: If there is no model, if it or ``dense`` does not fit the images and classes, if masks or the
            latency table are wrong, or if training images are needed and not given.
        AgentError: If the agent fails or returns wrong actions.

    Example:
        >>> from prunegym.models import MaskedCNN, build, load_dataset
        >>> masked = MaskedCNN(build("simple-cnn", 10, 1, 8), torch.zeros(1, 1, 8, 8))
        >>> result = evaluate(torch.ones(48), masked, load_dataset("digits", "test"))
        >>> result.kept_share, result.total_mac_share, result.is_static, result.accuracy == result.dense_accuracy
        (1.0, 1.0, True, True)
    """
    check_dataset(dataset)
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
        masked.to(check_device(device))
        if owner.policy is not None:
            owner.policy.to(device)
    with contextlib.ExitStack() as after:
        after.callback(masked.train, masked.training)
        masked.eval()
        dataset = answered(dataset, masked if dense is None else dense)
        cache = decisions.MaskCache(masked, dataset, batch_size)
        options = options or PredictorOptions()
        if isinstance(agent, DynamicCNN):
            decided = decisions.decide_dynamic(agent, dataset, batch_size, options.agent_penalty, penalty)
        elif decisions.is_masks(agent):
            decided = decisions.decide_fixed(agent, masked, dataset)  # type: ignore[arg-type]
        else:
            decided = decide_by_prediction(agent, owner, layerwise, batch_size, options, penalty)
        if decided.logits is not None:
            cache.add(decided.masks, decided.logits)
        full = cache(torch.ones(masked.mask_size, dtype=torch.bool))
        dense_accuracy, notes = _dense(dense, owner.info, full, dataset, batch_size)
        decided = dataclasses.replace(decided, notes=decided.notes + notes)
        result = _summary(decided, cache, full, dense_accuracy, penalty)
    if latency is None:
        return result
    # The table has the time of the model's own policy only, so another agent's decisions count as free.
    deciding = latency.policy_share if isinstance(agent, DynamicCNN) else 0.0
    return dataclasses.replace(result, latency_share=latency.share(result.masks).mean().item() + deciding)


def _dense(
    dense: nn.Module | None, info: CNNInfo, full: Tensor, dataset: Dataset, batch_size: int
) -> tuple[float, tuple[str, ...]]:
    """Return the original network's accuracy, and a note if it is not known."""
    if dense is not None:
        return _accuracy(dense_logits(dense, dataset, batch_size), dataset), ()
    stated = info.dense_accuracy(dataset)
    if stated is not None:
        return stated, ()
    return _accuracy(full, dataset), ("Dense accuracy is that of the model's own CNN with all channels on.",)


def _scores(logits: Tensor, dataset: Dataset) -> Tensor:
    """Return the metric of each image; right or wrong as bool."""
    scores = dataset.score(logits)
    return scores.bool() if dataset.objective.name("metric") == "correct" else scores


def _accuracy(logits: Tensor, dataset: Dataset) -> float:
    return _scores(logits, dataset).double().mean().item()


def _summary(
    decided: decisions.Decided, cache: decisions.MaskCache, full: Tensor, dense_accuracy: float, penalty: float
) -> Evaluation:
    masked, dataset, masks = cache.masked, cache.dataset, decided.masks
    logits = cache(masks)
    shuffled = cache(masks[decisions.derangement(len(masks))])
    correct = _scores(logits, dataset)
    mac_share = masked.cost.mac_share(masks)
    distinct = decisions.count_distinct(masks)
    deciding = torch.full_like(mac_share, decided.macs)
    if masked.constants is not None and distinct > 1:  # those of one mask for all images are in the biases
        deciding += masked.cost.compensation_macs(masks)
    total_shares = masked.cost.total_share(masks, deciding)
    is_static, sentence = decisions.verdict(correct, _scores(shuffled, dataset), distinct)
    return Evaluation(
        accuracy=_accuracy(logits, dataset),
        dense_accuracy=dense_accuracy,
        prepared_accuracy=_accuracy(full, dataset),
        kept_share=masks.double().mean().item(),
        mac_share=mac_share.mean().item(),
        policy_mac_share=deciding.mean().item() / masked.cost.total_macs,
        total_mac_share=total_shares.mean().item(),
        mac_share_std=mac_share.std(unbiased=False).item(),
        distinct_masks=distinct,
        static_accuracy=_accuracy(cache(decisions.static_mask(masks, masked)), dataset),
        shuffled_accuracy=_accuracy(shuffled, dataset),
        reward=decisions.penalised_accuracy(correct, total_shares, penalty).mean().item(),
        images=len(dataset),
        is_static=is_static,
        verdict=sentence,
        notes=decided.notes,
        masks=masks,
        total_mac_shares=total_shares,
        correct=correct,
        logits=logits,
    )
