"""Pictures of images with their masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from prunegym.envs.simulator import Snapshot
from prunegym.envs.task import Task
from prunegym.errors import InvalidInputError
from prunegym.models.tasks.answers import target_text
from prunegym.validation import choice

Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

BACKGROUND: Colour = (24, 26, 31)
TEXT: Colour = (232, 232, 232)
FAINT: Colour = (140, 145, 155)
KEPT: Colour = (86, 180, 233)
OFF: Colour = (60, 64, 72)
UNDECIDED: Colour = (34, 37, 43)
RIGHT: Colour = (98, 200, 120)
WRONG: Colour = (232, 100, 90)

MARGIN, IMAGE_SIDE, NAME_WIDTH, STRIP_WIDTH, LINE_HEIGHT = 12, 160, 128, 320, 18
LOWEST_ROW, HIGHEST_ROW = 17, 48
MAX_ROWS = 32


def check_render_mode(render_mode: str | None) -> str | None:
    """Return a render mode.

    Raises:
        InvalidInputError: If it is ``human``, which Gymnasium makes for scalar environments from ``rgb_array``.
        UnknownNameError: If it is not None or ``rgb_array``.
    """
    if render_mode == "human":
        raise InvalidInputError(
            "render_mode 'human' shows one environment in a window: gymnasium.make(ID, render_mode='human'), which "
            "needs pygame (pip install 'gymnasium[classic-control]'). Here give 'rgb_array' and call render()."
        )
    return None if render_mode is None else choice("render mode", render_mode, ["rgb_array"])


def render(task: Task, snapshot: Snapshot, row: int = 0) -> Picture:
    """Draw one sub-environment: its image, the mask as one strip for each gate, the prediction and the cost.

    Args:
        task: The simulator's task.
        snapshot: The simulator's snapshot.
        row: Which sub-environment.

    Returns:
        (height, width, 3) uint8, of the same size during an episode.
    """
    gates = task.masked.gates
    strips = min(len(gates), MAX_ROWS)
    room = IMAGE_SIDE + 5 * LINE_HEIGHT
    row_height = min(HIGHEST_ROW, max(LOWEST_ROW, room // (strips + 1)))
    height = 2 * MARGIN + max(room, (strips + 1) * row_height)
    picture = Image.new("RGB", (4 * MARGIN + IMAGE_SIDE + NAME_WIDTH + STRIP_WIDTH, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    picture.paste(_photo(snapshot.images[row], IMAGE_SIDE), (MARGIN, MARGIN))
    for line, (text, colour) in enumerate(_captions(task, snapshot, row)):
        draw.text((MARGIN, MARGIN + IMAGE_SIDE + 6 + line * LINE_HEIGHT), text, colour, font=_font(13))
    left = 2 * MARGIN + IMAGE_SIDE
    parts = task.masked.split(snapshot.mask[row].cpu())
    for index in range(strips):
        top = MARGIN + index * row_height
        decided = index < snapshot.gates_decided
        name = gates[index].name[-15:]
        kept = f"{int(parts[index].sum())}/{gates[index].width}" if decided else f"-/{gates[index].width}"
        middle = top + (row_height - 4) // 2
        draw.text((left, middle), name, FAINT, font=_font(11), anchor="lm")
        draw.text((left + NAME_WIDTH - 4, middle), kept, TEXT if decided else FAINT, font=_font(11), anchor="rm")
        _draw_strip(draw, parts[index].numpy(), decided, (left + NAME_WIDTH + 4, top), STRIP_WIDTH, row_height - 4)
    if len(gates) > strips:
        text = f"and {len(gates) - strips} more gates"
        draw.text((left, MARGIN + strips * row_height), text, FAINT, font=_font(11))
    return np.array(picture)


def draw_gallery(task: Task, snapshot: Snapshot, columns: int = 4, rows: Sequence[int] | None = None) -> Picture:
    """Draw several images side by side, each with its mask, its prediction and its MACs.

    Args:
        task: The simulator's task.
        snapshot: The snapshot of a simulator whose episodes are over.
        columns: Number of pictures in a row.
        rows: Which sub-environments; by default all.

    Returns:
        (height, width, 3) uint8.
    """
    chosen = list(range(len(snapshot.images))) if rows is None else list(rows)
    columns = max(1, min(columns, len(chosen)))
    gates = task.masked.gates
    side, width = 112, 128
    strip_height = max(2, min(24, side // len(gates) - 1))
    body = max(side, (strip_height + 1) * len(gates))
    tile_width, tile_height = 3 * MARGIN + side + width, 2 * MARGIN + body + 2 * LINE_HEIGHT
    size = (tile_width * columns, tile_height * -(-len(chosen) // columns))
    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for place, row in enumerate(chosen):
        left = tile_width * (place % columns) + MARGIN
        top = tile_height * (place // columns) + MARGIN
        picture.paste(_photo(snapshot.images[row], side), (left, top))
        (verdict, colour), (label, _), (share, _), _ = _captions(task, snapshot, row)
        verdict = verdict if colour == RIGHT else f"{verdict} ({label})"
        draw.text((left, top + body + 4), verdict, colour, font=_font(12))
        draw.text((left, top + body + 4 + LINE_HEIGHT), share, TEXT, font=_font(12))
        for index, part in enumerate(task.masked.split(snapshot.mask[row].cpu())):
            corner = (left + side + MARGIN, top + index * (strip_height + 1))
            _draw_strip(draw, part.numpy(), index < snapshot.gates_decided, corner, width, strip_height)
    return np.array(picture)


def _captions(task: Task, snapshot: Snapshot, row: int) -> list[tuple[str, Colour]]:
    classes, target = task.dataset.classes, snapshot.labels[row]
    kind = task.dataset.objective.kind
    shown = target_text(kind, target, classes)
    kept, size = int(snapshot.mask[row].sum()), task.masked.mask_size
    if snapshot.gates_decided < len(task.masked.gates):
        verdict = (f"deciding gate {snapshot.gates_decided + 1} of {len(task.masked.gates)}", FAINT)
    elif snapshot.predictions is None:
        verdict = ("no class predicted", FAINT)
    else:
        prediction = int(snapshot.predictions[row])
        name = classes[prediction] if prediction < len(classes) else str(prediction)
        verdict = (f"predicted: {name}", RIGHT if prediction == int(target) else WRONG)
    return [
        verdict,
        (f"{'label' if kind == 'classes' else 'target'}: {shown}", TEXT),
        (f"MACs: {100 * float(snapshot.mac_share[row]):.0f} %", TEXT),
        (f"channels: {kept}/{size} ({100 * kept / size:.0f} %)", TEXT),
    ]


def _photo(image: torch.Tensor, side: int) -> Image.Image:
    """Enlarge an image (channels, height, width) uint8 without blurring; one or three channels are shown."""
    pixels = image.cpu().numpy()
    pixels = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    photo = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return photo.resize((side, side), Image.Resampling.NEAREST)


def _draw_strip(
    draw: ImageDraw.ImageDraw,
    bits: npt.NDArray[np.float32],
    decided: bool,
    corner: tuple[int, int],
    width: int,
    height: int,
) -> None:
    """Draw a gate's bits as cells from left to right; a pixel for several bits mixes their colours."""
    left, top = corner
    edges = np.linspace(0, width, len(bits) + 1)
    gap = 1 if width / len(bits) >= 4 else 0
    if width >= len(bits):
        for bit, start, end in zip(bits, edges[:-1], edges[1:], strict=True):
            colour = UNDECIDED if not decided else KEPT if bit else OFF
            box = (left + round(start), top, left + max(round(start), round(end) - 1 - gap), top + height - 1)
            draw.rectangle(box, colour)
        return
    owner = np.minimum(np.arange(len(bits)) * width // len(bits), width - 1)
    share = np.bincount(owner, bits, width) / np.bincount(owner, minlength=width)
    for column, part in enumerate(share):
        mixed = [round(float(part) * on + (1 - float(part)) * off) for on, off in zip(KEPT, OFF, strict=True)]
        colour = (mixed[0], mixed[1], mixed[2]) if decided else UNDECIDED
        draw.line((left + column, top, left + column, top + height - 1), colour)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
