"""Step 1 of the article: train a network from scratch. Also reports, and checkpoints from which training resumes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.checks import check_dataset, check_device, check_images, check_output, layout_of, output_shape
from prunegym.models.data.dataset import Dataset
from prunegym.models.precision import new_tensors_in
from prunegym.models.storage.run_folder import without_unused
from prunegym.models.storage.run_state import BROKEN, load_part, load_state, save_state
from prunegym.models.storage.weights import check_inputs, fingerprint_of
from prunegym.validation import choice, finite, share, whole_number

Report = Callable[[dict[str, float]], None]
"""Called with the figures of a step or an epoch, by name."""

StageReport = Callable[[str, dict[str, Any]], None]
"""Called with the name of a stage of training, and its figures by name."""
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of training a network from scratch."""

    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 0.1
    """Peak of the one-cycle schedule."""
    weight_decay: float = 5e-4
    momentum: float = 0.9
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass; ``auto`` uses bfloat16 where the processor computes it natively."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidInputError: If a number is too small or the precision is unknown.
        """
        whole_number("epochs", self.epochs)
        whole_number("batch_size", self.batch_size)
        finite("learning_rate", self.learning_rate, above=0)
        finite("weight_decay", self.weight_decay, 0)
        share("momentum", self.momentum, zero=True)
        choice("precision", self.precision, PRECISIONS)
        whole_number("seed", self.seed, 0)


def bfloat16_is_native(device: torch.device | str = "cpu") -> bool:
    """Whether bfloat16 convolutions are fast here; on processors without the instructions they are 10x slower."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Return the autocast context for a precision of :class:`TrainConfig`."""
    native = precision == "bfloat16" or (precision == "auto" and bfloat16_is_native(device))
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=native)


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, torch.Generator]:
    """Shuffle image indices for one epoch.

    The order depends only on the arguments, so a resumed run sees the same batches as an uninterrupted one.

    Args:
        count: Images in the split.
        batch_size: Images in a batch. The last, incomplete batch is dropped, unless it is the only one.
        seed: Seed of the run.
        epoch: Epoch, from 0.

    Returns:
        Indices (batches, batch_size) int64, and the generator for this epoch's augmentation.
    """
    # A prime as the factor keeps the seeds of different runs and epochs apart.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    batch_size = min(batch_size, count)
    batches = count // batch_size
    return order[: batches * batch_size].view(batches, batch_size), generator


@new_tensors_in()
def train(
    network: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    *,
    validation: Dataset | None = None,
    checkpoint: Path | str | None = None,
    device: str = "cpu",
    report: Report | None = None,
) -> nn.Module:
    """Train a network in place by SGD with a one-cycle learning rate and the data set's augmentation.

    Args:
        network: Takes normalised images (batch, channels, height, width), returns outputs (batch, ...) for the targets,
            for classes logits (batch, classes).
        dataset: Training images, with targets and their loss.
        config: Schedule.
        validation: Images whose accuracy is reported after each epoch. It has no effect on training.
        checkpoint: File written after each epoch. If it exists, training resumes from it.
        device: Torch device.
        report: Called after each epoch with ``epoch``, ``loss``, ``learning_rate`` and ``validation_accuracy``.

    Returns:
        The network, in eval mode.

    Raises:
        InvalidInputError: If the network does not fit the images and classes of both data sets, the loss is not finite,
            or the checkpoint belongs to another configuration.
    """
    shape = output_shape(network, dataset)
    check_output(dataset, shape)
    if dataset.unlabelled:
        raise InvalidInputError(f"Data set {dataset.name!r} has no targets, which are needed to train a network.")
    if validation is not None:
        check_images(validation, dataset.image_shape)
        check_output(validation, shape)
        validation = dataclasses.replace(validation.with_classes(dataset.classes), objective=dataset.objective)
    layout = layout_of(network, dataset)
    network.to(device=check_device(device), memory_format=layout).train()  # type: ignore[call-overload]
    steps = config.epochs * epoch_batches(len(dataset), config.batch_size, 0, 0)[0].shape[0]
    optimizer = sgd(network, config.learning_rate, config.weight_decay, config.momentum)
    schedule = one_cycle(optimizer, steps)
    stored = Checkpoint(checkpoint, [network, optimizer, schedule], config, {"training images": dataset})
    for epoch in range(stored.restore(), config.epochs):
        loss = _train_epoch(network, dataset, config, epoch, optimizer, schedule, device, layout)
        stored.store(epoch + 1)
        if report is not None:
            row = {"epoch": epoch + 1.0, "loss": loss, "learning_rate": float(schedule.get_last_lr()[0])}
            if validation is not None:
                row["validation_accuracy"] = accuracy(network, validation)
            report(row)
    return network.eval()


def sgd(network: nn.Module, learning_rate: float, weight_decay: float, momentum: float = 0.9) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum for all of a network's parameters."""
    return torch.optim.SGD(network.parameters(), learning_rate, momentum, weight_decay=weight_decay, nesterov=True)


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """Return a schedule that rises to the optimizer's learning rate in 15 % of the steps, then falls to zero."""
    peak = optimizer.param_groups[0]["lr"]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.15)


def _train_epoch(
    network: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    epoch: int,
    optimizer: Any,
    schedule: Any,
    device: str,
    layout: torch.memory_format,
) -> float:
    network.train()
    batches, generator = epoch_batches(len(dataset), config.batch_size, config.seed, epoch)
    total = 0.0
    # Dropout draws from the global generator. Its seed depends on the epoch, so a resumed run has the same dropout.
    with torch.random.fork_rng(devices=[] if torch.device(device).type == "cpu" else [device]):
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        for indices, images in dataset.stream(batches, device=device, augment=generator):
            with autocast(device, config.precision):
                loss = dataset.loss(network(images.contiguous(memory_format=layout)), indices)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
    mean = total / len(batches)
    if not torch.isfinite(torch.tensor(mean)):
        raise InvalidInputError(
            f"The training loss became {mean} in epoch {epoch + 1}. Lower the learning rate ({config.learning_rate})."
        )
    return mean


@torch.inference_mode()
def outputs_of(network: nn.Module, dataset: Dataset, batch_size: int = 250) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield indices of images, in order, and a CNN's outputs (batch, ...) for them, in eval mode, on the CPU."""
    parameter = next(network.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    was_training, layout = network.training, layout_of(network, dataset)
    network.eval()
    try:
        for indices, images in dataset.batches(batch_size, device=device):
            yield indices, network(images.contiguous(memory_format=layout)).cpu()
    finally:
        network.train(was_training)


def dense_logits(network: nn.Module, dataset: Dataset, batch_size: int = 250) -> Tensor:
    """Return a CNN's output for every image (of a masked CNN with all channels on): (count, ...) on the CPU."""
    return torch.cat([outputs for _, outputs in outputs_of(network, dataset, batch_size)]).clone()


def answered(dataset: Dataset, network: nn.Module) -> Dataset:
    """Return a data set with targets; if it has none, they are the network's outputs."""
    return dataset.answered(dense_logits(network, dataset)) if dataset.unlabelled else dataset


def accuracy(network: nn.Module, dataset: Dataset, *, batch_size: int = 250) -> float:
    """Return the mean of a data set's metric over a network's answers: by default the share (0 to 1) of right classes.

    Raises:
        InvalidInputError: If the data set has no targets.
    """
    check_dataset(dataset)
    if dataset.unlabelled:
        raise InvalidInputError(
            f"Data set {dataset.name!r} has no targets, so there is no accuracy. Give targets, or use "
            "dataset.answered(outputs) with the outputs of a network."
        )
    scores = [dataset.score(outputs, indices) for indices, outputs in outputs_of(network, dataset, batch_size)]
    return float(torch.cat(scores).mean())


def of_stage(report: StageReport | None, stage: str) -> Report | None:
    """Return a callback for the figures of one stage; None without a report."""
    return None if report is None else lambda figures: report(stage, figures)


class Checkpoint:
    """A file with the state of a training, its configuration, and hashes of its inputs.

    Args:
        path: The file; None stores nothing.
        parts: The objects with a state: network, gates, optimizers, schedules.
        config: Configuration of the training, a dataclass.
        inputs: Networks, before they are trained, and data sets by name.
    """

    def __init__(
        self, path: Path | str | None, parts: Sequence[Any], config: Any, inputs: Mapping[str, nn.Module | Dataset]
    ) -> None:
        self.path, self.parts = None if path is None else Path(path), parts
        self.config: dict[str, Any] = dataclasses.asdict(config)
        self.inputs = {} if path is None else {name: fingerprint_of(thing) for name, thing in inputs.items()}

    def store(self, done: int) -> None:
        """Write the file.

        Args:
            done: Number of epochs or steps so far.
        """
        if self.path is not None:
            state = [part.state_dict() for part in self.parts]
            save_state(self.path, {"done": done, "state": state, "config": self.config, "inputs": self.inputs})

    def restore(self) -> int:
        """Load the file, if there is one, into all parts; return how much was done.

        Raises:
            InvalidInputError: If it is from another configuration, other networks or images, or is not a checkpoint.
        """
        if self.path is None or not self.path.exists():
            return 0
        stored = load_state(self.path)
        if not {"done", "state", "config"} <= stored.keys():
            raise InvalidInputError(
                f"{self.path} is not a checkpoint of a training run; its keys are {sorted(map(str, stored))[:8]}."
            )
        if without_unused(stored["config"]) != without_unused(self.config):
            raise InvalidInputError(
                f"{self.path} was written with other settings ({stored['config']}); this run has {self.config}. "
                "Give the same options, or another folder."
            )
        check_inputs(self.path, stored.get("inputs"), self.inputs)
        try:
            for part, state in zip(self.parts, stored["state"], strict=True):
                load_part(part, state)
            return whole_number("done", stored["done"], 0)
        except BROKEN as error:
            raise InvalidInputError(
                f"{self.path} is a checkpoint of another network or other gates ({str(error).splitlines()[0]}) Use "
                "those of that run, or another folder."
            ) from error
