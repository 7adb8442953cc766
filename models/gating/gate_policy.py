"""Gate policies: small networks that decide for each image which channels of a CNN run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.gating.features import Decision, MaskFeatures
from prunegym.models.precision import new_tensors_in
from prunegym.validation import finite, typed, whole_number


def gate_head(features: int, hidden: int, width: int, bias: float = 2.0) -> nn.Sequential:
    """Return a network with one hidden layer: (batch, features) -> logits (batch, width), at first near ``bias``."""
    whole_number("hidden", hidden)
    last = nn.Linear(hidden, width)
    head = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), last)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.constant_(last.bias, bias)
    return head


class GatePolicy(nn.Module):
    """A head with one hidden layer for each decision, from features to one logit for each channel.

    The same module is used in imitation, joint training, Stable-Baselines3 (as the actor) and inference. A channel is
    kept if its logit is positive (the article's method 5.1: sigmoid of a small network, thresholded at 0.5).

    Args:
        features: The features that it reads.
        hidden: Width of the hidden layers: one number, or one for each decision.
        bias: Initial bias of the logits; +2 keeps a channel with probability 0.88, so training starts from a network
            that works.
        penalty_range: If given, the policy is for all lambdas in [low, high], and lambda is an additional input.

    Attributes:
        decisions: The decisions, in order.
        macs: MACs of the policy for one image.
    """

    @new_tensors_in()
    @typed
    def __init__(
        self,
        features: MaskFeatures,
        hidden: int | Sequence[int] = 64,
        bias: float = 2.0,
        penalty_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.decisions: tuple[Decision, ...] = features.decisions
        widths = list(hidden) if isinstance(hidden, Sequence) else [hidden] * len(self.decisions)
        for width in widths:
            whole_number("hidden", width)
        finite("bias", bias)
        if penalty_range is not None and not (
            finite("penalty_range", penalty_range[0], 0) < finite("penalty_range", penalty_range[1], 0)
        ):
            raise InvalidInputError(f"penalty_range is {penalty_range}; the first number has to be the smaller one.")
        if len(widths) != len(self.decisions):
            raise InvalidInputError(
                f"hidden is {widths}; give one number, or one for each of the {len(self.decisions)} decisions."
            )
        self.config = {"hidden": hidden if isinstance(hidden, int) else widths, "penalty_range": penalty_range}
        self.penalty_range = penalty_range
        extra = 0 if penalty_range is None else 1
        self.heads = nn.ModuleList(
            gate_head(size + extra, width, decision.width, bias)
            for size, width, decision in zip(features.sizes, widths, self.decisions, strict=True)
        )
        weights = (layer.weight.numel() for layer in self.heads.modules() if isinstance(layer, nn.Linear))
        self.macs = features.macs + sum(weights)

    def logits(self, decision: int, features: Tensor, penalty: Tensor | float | None = None) -> Tensor:
        """Return one logit for each channel.

        Args:
            decision: Index of the decision.
            features: (batch, sizes[decision]) float32, of :class:`MaskFeatures`.
            penalty: lambda, (batch,) or one number, for a policy with a ``penalty_range``; by default the middle of it.

        Returns:
            (batch, width) float32.

        Raises:
            InvalidInputError: If a lambda is given, but the policy was trained for one lambda only.
        """
        if self.penalty_range is None:
            check_penalty(None, penalty)
        else:
            scaled = self.scaled_penalty(penalty).to(features)
            features = torch.cat([features, scaled.expand(features.shape[0]).unsqueeze(1)], dim=1)
        head = self.heads[decision]
        logits: Tensor = head(features.to(next(head.parameters()).dtype))
        return logits.float()

    def scaled_penalty(self, penalty: Tensor | float | None) -> Tensor:
        """Return lambda scaled from the ``penalty_range`` to -1..1, the heads' input; None means the middle."""
        low, high = (0.0, 0.0) if self.penalty_range is None else self.penalty_range
        value = torch.as_tensor((low + high) / 2 if penalty is None else penalty, dtype=torch.float32)
        # 2 (x - low) / (high - low) - 1; a range of one number must not divide by zero.
        return 2 * (value - low) / max(high - low, 1e-12) - 1

    def layers(self, decision: int, penalty: float | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a head's weights for one fixed lambda, which is added to the first bias.

        Args:
            decision: Index of the decision.
            penalty: lambda, for a policy with a ``penalty_range``.

        Returns:
            Weight and bias of the first layer, (hidden, sizes[decision]) and (hidden), and of the last, (width, hidden)
            and (width).
        """
        weight, bias, last_weight, last_bias = (parameter.detach() for parameter in self.heads[decision].parameters())
        if self.penalty_range is not None:
            bias = bias + weight[:, -1] * self.scaled_penalty(penalty).to(bias)
            weight = weight[:, :-1]
        return weight, bias, last_weight, last_bias

    @torch.no_grad()
    def rescale_logits(self, factor: float = 1.0, offset: float = 0.0) -> None:
        """Multiply all logits by a factor and add an offset, in place; a positive offset keeps more channels."""
        for head in self.heads:
            last = cast(nn.Linear, cast(nn.Sequential, head)[-1])
            last.weight.mul_(factor)
            last.bias.mul_(factor).add_(offset)


def check_penalty(bounds: tuple[float, float] | None, penalty: Tensor | float | None) -> None:
    """Raise InvalidInputError for a lambda outside a policy's range, or any lambda if it has no range."""
    if penalty is None:
        return
    if bounds is None:
        raise InvalidInputError(
            f"penalty is {penalty}, but the policy was trained for one lambda, which is not an input. Omit it, or "
            "train a policy for a range, as the recipe dial does."
        )
    if not bounds[0] <= penalty <= bounds[1]:
        raise InvalidInputError(
            f"penalty is {penalty}; the policy was trained for lambdas from {bounds[0]} to {bounds[1]}. Give one of "
            "these."
        )
