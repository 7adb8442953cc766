"""The time of masks: a table measured on a machine, interpolated over kept widths."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.weights import save_text
from prunegym.validation import finite, instance, typed, whole_number

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Axis:
    """A number of channels on which a time depends: ``always`` + the sum of ``each[gate]`` for each kept channel.

    Attributes:
        each: Channels for each kept channel, by gate.
        always: Channels that no mask removes.
        points: Numbers of channels at which the time was measured, increasing.
    """

    each: Mapping[int, float]
    always: float
    points: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the numbers."""
        for value in (*self.each.values(), self.always, *self.points):
            finite("A number of channels of a latency table", value, 0)
        if not self.points or any(first >= second for first, second in itertools.pairwise(self.points)):
            raise InvalidInputError(
                f"The points {self.points} of a latency table are not increasing. Measure it again."
            )

    def place(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return the point below and the position (0 to 1) up to the next one: (batch, gates) -> (batch,) each."""
        width = sum(
            (kept[:, gate] * count for gate, count in self.each.items()), kept.new_full((len(kept),), self.always)
        )
        points = torch.tensor(self.points, dtype=kept.dtype, device=kept.device)
        if len(points) == 1:
            return torch.zeros(len(kept), dtype=torch.int64, device=kept.device), torch.zeros_like(width)
        below = (torch.searchsorted(points, width, right=True) - 1).clamp(0, len(points) - 2)
        # (x - x0) / (x1 - x0), where x0 and x1 are the points around x.
        share = (width - points[below]) / (points[below + 1] - points[below])
        return below, share.clamp(0, 1)


@dataclasses.dataclass(frozen=True)
class Part:
    """The time of those steps of a network that depend on the same kept widths.

    Attributes:
        name: Name of its first step.
        inputs: Input channels.
        outputs: Output channels.
        seconds: For each point of ``inputs`` a time for each point of ``outputs``.
    """

    name: str
    inputs: Axis
    outputs: Axis
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        """Check that there is one time for each pair of points."""
        sizes = {len(row) for row in self.seconds}
        if len(self.seconds) != len(self.inputs.points) or sizes != {len(self.outputs.points)}:
            raise InvalidInputError(
                f"Part {self.name!r} of a latency table does not have one time for each pair of points."
            )
        for value in itertools.chain(*self.seconds):
            finite(f"A time of part {self.name!r} of a latency table", value, 0)

    def at(self, kept: Tensor) -> Tensor:
        """Interpolate between the four points around: kept (batch, gates) float64 -> seconds (batch,)."""
        table = torch.tensor(self.seconds, dtype=kept.dtype, device=kept.device)
        (row, down), (column, along) = self.inputs.place(kept), self.outputs.place(kept)
        rows, columns = (
            (place + 1).clamp(max=size - 1) for place, size in zip((row, column), table.shape, strict=True)
        )
        # Bilinear interpolation: along the outputs at both points of the inputs, then between these two.
        near = table[row, column] * (1 - along) + table[row, columns] * along
        far = table[rows, column] * (1 - along) + table[rows, columns] * along
        return near * (1 - down) + far * down


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """Seconds of an image, for any mask.

    Attributes:
        execution: The measured execution, e.g. ``torch``.
        gates: Name and width of each gate.
        fixed: Seconds that do not depend on the mask.
        parts: Parts whose seconds depend on the mask.
        policy: Seconds of the policy for one image, run by ``execution``; 0 if the model had no policy.
        machine: The machine: processor, cores, threads, versions.
        validation: The error of predictions of the end-to-end time, see
            :func:`prunegym.models.timing.latency_measurement.measure`.
    """

    execution: str
    gates: tuple[tuple[str, int], ...]
    fixed: float
    parts: tuple[Part, ...]
    policy: float = 0.0
    machine: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    validation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the times, and that parts depend on gates that exist."""
        for name in ("fixed", "policy"):
            finite(f"{name} of a latency table", getattr(self, name), 0)
        instance("execution of a latency table", self.execution, str)
        for name in ("machine", "validation"):
            instance(f"{name} of a latency table", getattr(self, name), Mapping)
        if not self.parts:
            raise InvalidInputError("The latency table has no parts, so that no mask would change its time.")
        for _, width in self.gates:
            whole_number("The width of a gate of a latency table", width)
        named = {gate for part in self.parts for axis in (part.inputs, part.outputs) for gate in axis.each}
        if not named <= set(range(len(self.gates))):
            raise InvalidInputError(f"The latency table has {len(self.gates)} gates, but times of {sorted(named)}.")
        finite("The time of all channels in a latency table", self.dense_seconds, above=0)

    def seconds(self, mask: Tensor) -> Tensor:
        """Return the CNN's seconds for each mask, without the policy's: (batch, mask_size) -> (batch,) float64."""
        slices = torch.split(mask.double(), [width for _, width in self.gates], dim=1)
        return self.seconds_of_widths(torch.stack([part.sum(1) for part in slices], 1))

    def seconds_of_widths(self, kept: Tensor) -> Tensor:
        """Return the CNN's seconds for kept widths: (batch, gates) -> (batch,) float64."""
        kept = kept.double()
        return sum((part.at(kept) for part in self.parts), kept.new_full((len(kept),), self.fixed))

    @property
    def dense_seconds(self) -> float:
        """Seconds with all channels on."""
        return self.seconds_of_widths(torch.tensor([[float(width) for _, width in self.gates]])).item()

    def share(self, mask: Tensor) -> Tensor:
        """Return seconds under each mask / seconds with all channels on: (batch, mask_size) -> (batch,) float64."""
        return self.seconds(mask) / self.dense_seconds

    @property
    def policy_share(self) -> float:
        """Seconds of the policy / seconds with all channels on."""
        return self.policy / self.dense_seconds

    def check(self, masked: MaskedCNN) -> LatencyTable:
        """Return the table itself if it was made for a CNN with these gates.

        Raises:
            InvalidInputError: If it was made for another.
        """
        own = tuple((gate.name, gate.width) for gate in masked.gates)
        if own != self.gates:
            raise InvalidInputError(
                f"The latency table is for {_describe(self.gates)}; the model has {_describe(own)}. Measure one for "
                "it: prunegym latency MODEL --out table.json"
            )
        return self

    @typed
    def save(self, path: Path | str) -> None:
        """Write the table as JSON."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        save_text(Path(path), json.dumps(content, indent=1) + "\n")

    @classmethod
    @typed
    def load(cls, path: Path | str) -> LatencyTable:
        """Read what :meth:`save` wrote.

        Raises:
            MissingDataError: If there is no such file.
            InvalidInputError: If it is not a latency table, or has a newer format.
        """
        if not Path(path).is_file():
            raise MissingDataError(
                f"There is no latency table {path}. Measure one: prunegym latency MODEL --out {path}"
            )
        try:
            content = json.loads(Path(path).read_text())
            version = content.pop("format")
            if version == FORMAT:
                gates = tuple((str(name), width) for name, width in content.pop("gates"))
                return cls(gates=gates, parts=tuple(map(_part, content.pop("parts"))), **content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise InvalidInputError(
                f"{path} is not a latency table ({type(error).__name__}: {error}). Make one with prunegym latency."
            ) from error
        raise InvalidInputError(f"{path} has format {version}; this version reads format {FORMAT}. Update it.")


def open_table(table: LatencyTable | Path | str, masked: MaskedCNN) -> LatencyTable:
    """Return a table, or read it from its path, after checking that it is for this CNN."""
    given = instance("latency_table", table, (LatencyTable, str, Path))
    return (given if isinstance(given, LatencyTable) else LatencyTable.load(given)).check(masked)


def _part(raw: Mapping[str, Any]) -> Part:
    seconds = tuple(tuple(map(float, row)) for row in raw["seconds"])
    return Part(str(raw["name"]), _axis(raw["inputs"]), _axis(raw["outputs"]), seconds)


def _axis(raw: Mapping[str, Any]) -> Axis:
    points = tuple(map(float, raw["points"]))
    return Axis({int(gate): float(count) for gate, count in raw["each"].items()}, float(raw["always"]), points)


def _describe(gates: tuple[tuple[str, int], ...]) -> str:
    return f"{len(gates)} gates ({', '.join(f'{name}: {width}' for name, width in gates[:3])}, ...)"
