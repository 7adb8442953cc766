"""Options that several commands have. Nothing here imports torch: completion reads it at each press of Tab."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from prunegym.errors import InvalidInputError
from prunegym.settings import parse
from prunegym.validation import finite as check_finite, whole_number

if TYPE_CHECKING:
    from prunegym.agents.rl.recipe import Recipe
    from prunegym.models.storage.model_file import Bundle


def finite(param: typer.CallbackParam, value: float | None) -> float | None:
    """Refuse infinity and NaN, which JSON cannot express; for typer's ``callback``."""
    return None if value is None else check_finite(param.opts[0], value)


TRAINED = "A model file, a shipped model, or a network by name with --weights."
GATED = "A model file with a gate policy, or a shipped model."
TrainedModel = Annotated[str, typer.Argument(help=TRAINED)]
NAMES = "of the zoo, timm:NAME, torchvision:NAME or module:function"
AnyModel = Annotated[str, typer.Argument(help=f"A model file, a shipped model, or a network: {NAMES}.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of all random numbers.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Split = Annotated[str, typer.Option("--split", help="train, validation or test.")]
Images = Annotated[int | None, typer.Option("--images", help="Use a random subset of this many images.")]
DenseFile = Annotated[Path | None, typer.Option(help="File of the original CNN; losses are counted from it.")]
TRUST = "Load agents of Stable-Baselines3 (.zip), which can run any code. Only from people you trust."
TrustCode = Annotated[bool, typer.Option("--trust-code", help=TRUST)]
HOW = (
    "masked (compute all channels, then zero), kernel, torch, full, auto (the fastest of these three), int8 "
    "(the kernel on bytes, after quantize --calibrate), or bfloat16 (the kernel on bfloat16)."
)
Execution = Annotated[str, typer.Option(help=HOW)]
ShownPenalty = Annotated[float | None, typer.Option(help="lambda, for a model that was trained for a range.")]
Episodes = Annotated[int | None, typer.Option("--episodes", min=0, help="Episodes (images), instead of the recipe's.")]
TargetMacs = Annotated[
    float | None, typer.Option(help="Budget: total MAC share at which RL begins and ends; lambda adapts to it.")
]
SET = "Change one setting, e.g. n_envs=64 or imitation.steps=100; repeatable. An unknown name lists all settings."
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET)]


DataRoot = Annotated[Path | None, typer.Option(help="Folder with the data sets; else PRUNEGYM_DATA.")]
SIZE = "Size of images of a folder, e.g. 224 or 224x160 (height x width); by default the model's own."


@dataclasses.dataclass(frozen=True)
class Data:
    """Where images come from."""

    dataset: Annotated[str | None, typer.Option(help="Name or path of a data set; by default the model's own.")] = None
    data_root: DataRoot = None
    image_size: Annotated[str | None, typer.Option(metavar="SIZE", help=SIZE)] = None
    resize: Annotated[int | None, typer.Option(help="Shorter side of images before the crop.")] = None
    crop: Annotated[str | None, typer.Option(help="center, or none to stretch images to the size.")] = None
    interpolation: Annotated[str | None, typer.Option(help="bilinear, bicubic or another of Pillow's.")] = None
    loss: Annotated[str | None, typer.Option(help="A loss's name, or your module:function.")] = None
    metric: Annotated[str | None, typer.Option(help="What accuracy means: a metric, or your module:function.")] = None

    @property
    def transform(self) -> dict[str, Any]:
        """The options for images of other sizes, as ``load_dataset`` has them."""
        size = None if self.image_size is None else _sides(self.image_size)
        return {"image_size": size, "resize": self.resize, "crop": self.crop, "interpolation": self.interpolation}

    @property
    def options(self) -> dict[str, Any]:
        """All that is not about where the data are: of the transform, loss and metric."""
        return {**self.transform, "loss": self.loss, "metric": self.metric}

    def on(self, model: Bundle) -> Bundle:
        """Return a model for these images, loss and metric; options that are not given stay as the model has them."""
        from prunegym.models.catalog import with_options

        return with_options(model, self.dataset, **self.options)


NO_DATA = Data()


def _sides(text: str) -> int | tuple[int, int]:
    """Read ``224`` or ``224x160``, height first."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() for side in sides):
        raise InvalidInputError(f"--image-size is {text!r}; a number or HEIGHTxWIDTH is needed, e.g. 224 or 224x160.")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


GATES = "auto, all (residual sums too), or layers with commas between; for a network by name or a CNN without a policy."


@dataclasses.dataclass(frozen=True)
class Network:
    """How a model is opened that is a network by name, or has no gates yet."""

    weights: Annotated[Path | None, typer.Option(help="File of weights, for a network by name.")] = None
    gates: Annotated[str | None, typer.Option(help=GATES)] = None

    @property
    def options(self) -> dict[str, Any]:
        """The options, as :func:`prunegym.models.catalog.open_model` has them."""
        return {"weights": None if self.weights is None else str(self.weights), "gates": self.gates}

    def open(self, name: str, data: Data = NO_DATA, trained: bool = True) -> Bundle:
        """Open a model by name; a network is built for the data."""
        from prunegym.models.catalog import open_model, open_trained

        return data.on((open_trained if trained else open_model)(name, data.dataset, **self.options, **data.transform))


PART = "Part of the shuffled training images. :40000 and 40000: share no image."


@dataclasses.dataclass(frozen=True)
class TrainingData(Data):
    """The same, for commands that train."""

    train_images: Annotated[str | None, typer.Option(metavar="FROM:TO", help=PART)] = None
    class_weights: Annotated[str | None, typer.Option(help="balanced, or a weight for each class: 1,2.5,1")] = None
    no_data_path: Annotated[
        bool,
        typer.Option("--no-data-path", help="Do not store the path of the data set in models."),
    ] = False

    @property
    def weights(self) -> object:
        """The class weights, as :meth:`prunegym.models.Dataset.judged` takes them."""
        if self.class_weights is None or self.class_weights == "balanced":
            return self.class_weights
        try:
            return tuple(map(float, self.class_weights.split(",")))
        except ValueError as error:
            raise InvalidInputError(
                f"--class-weights is {self.class_weights!r}; balanced or numbers like 1,2.5,1 are needed."
            ) from error

    def hidden(self, model: Bundle) -> Bundle:
        """Return a model as it is stored: with ``--no-data-path`` without the path of its data set."""
        if not self.no_data_path:
            return model
        return dataclasses.replace(model, info=dataclasses.replace(model.info, data_path=None))


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """How an agent is trained."""

    recipe: Annotated[str, typer.Option("--recipe", help="A recipe that comes with PruneGym, or a YAML file.")]
    episodes: Episodes = None
    reward: Annotated[str | None, typer.Option(help="A reward's name, or your module:function.")] = None
    penalty: Annotated[float | None, typer.Option(callback=finite, help="lambda, instead of the recipe's.")] = None
    settings: Settings = None

    def read(self, target_macs: float | None = None) -> Recipe:
        """Return the recipe with what the command line says instead; settings of ``--set`` come last."""
        from prunegym.agents.rl.recipe_files import adjusted_recipe

        return adjusted_recipe(
            self.recipe, episodes=self.episodes, reward=self.reward, penalty=self.penalty, target_macs=target_macs,
            settings=parse(self.settings or ()),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Machine:
    """Threads and the form of the output."""

    threads: Annotated[int | None, typer.Option(min=1, help="Threads that torch uses.")] = None
    as_json: JsonFlag = False

    def settle(self, data: Data | None = None) -> None:
        """Set the number of torch's threads and the folder of data sets for the whole command."""
        import torch

        from prunegym.models.kernel.shared_library import MAX_THREADS

        if self.threads is not None:
            torch.set_num_threads(whole_number("--threads", self.threads, 1, MAX_THREADS))
        root = None if data is None else data.data_root
        if root is not None:
            if not root.is_dir():
                raise InvalidInputError(f"--data-root is {root}, which is not a folder. Give the folder of data sets.")
            # Every later call that loads a data set by name reads this variable.
            os.environ["PRUNEGYM_DATA"] = str(root.expanduser().resolve())


@dataclasses.dataclass(frozen=True)
class AnyMachine(Machine):
    """The same, for commands that can use a GPU."""

    device: Annotated[str, typer.Option(help="Torch device, e.g. cpu or cuda.")] = "cpu"

    def settle(self, data: Data | None = None) -> None:
        """Check the device too."""
        from prunegym.models.checks import check_device

        check_device(self.device)
        super().settle(data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(AnyMachine):
    """Options of commands that can take hours."""

    out: Annotated[Path, typer.Option(help="Folder of the run.")]
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False
    quiet: Quiet = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups: each parameter that is one of the classes above becomes the options in it.

    A default of such a parameter, an instance, gives its options their defaults.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    options = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            options.append(parameter.replace(annotation=hints[name]))
            continue
        inner = get_type_hints(groups[name], include_extras=True)
        for field, option in inspect.signature(groups[name]).parameters.items():
            default = getattr(parameter.default, field, option.default)
            options.append(option.replace(annotation=inner[field], default=default))
    options = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field: values.pop(field) for field in inspect.signature(group).parameters})
        command(**values)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run
