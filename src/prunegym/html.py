"""Tables and pictures for notebooks, which display objects through their ``_repr_html_``."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

MOST_IMAGES = 8
"""Largest number of images of a batch or a data set that are shown."""


class Picture(str):
    """HTML that a table inserts without escaping."""

    __slots__ = ()


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str) -> str:
    """Return a table; floats have up to four digits, text is escaped."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    # Above the table, not inside it: a <caption> would be folded to the width of the columns.
    return f"<p>{html.escape(caption)}</p><table><tr>{head}</tr>{body}</table>"


def words(key: str) -> str:
    """Return the key of a figure as it is written in text.

    Example:
        >>> words("total_mac_share")
        'total MAC share'
    """
    return key.replace("_", " ").replace("mac ", "MAC ")


def picture(pixels: Any, side: int = 48) -> Picture:
    """Return an image (channels, height, width) uint8, enlarged without blurring; one or three channels are shown."""
    # A style, because JupyterLab's own overrides the attribute `height`.
    return Picture(f'<img src="{png(pixels)}" style="height: {side}px; image-rendering: pixelated">')


def png(pixels: Any) -> str:
    """Return an image (channels, height, width) uint8 as the data URL of a PNG; one or three channels are shown."""
    from PIL import Image

    shown = pixels[:3] if len(pixels) >= 3 else pixels[:1].repeat(3, 1, 1)
    buffer = io.BytesIO()
    Image.fromarray(shown.permute(1, 2, 0).cpu().contiguous().numpy()).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _cell(value: Any) -> str:
    if isinstance(value, Picture):
        return value
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
