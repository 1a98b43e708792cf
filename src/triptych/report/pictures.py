"""Pictures as data URLs, so that a report is one file. Small ones keep every pixel, large ones are shrunk."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

PIXEL_ART = 96  # up to this many pixels a side a picture is shown enlarged, each pixel a square
LARGEST = 256


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An embedded picture; `pixelated` says that it is to be enlarged without smoothing."""

    url: str
    width: int
    height: int
    pixelated: bool


def embed(folder: Path, name: object) -> Picture | None:
    """The picture `name` of a samples folder, or None when there is none that can be read.

    Only the last part of `name` counts: a row cannot name a file outside its folder.
    """
    if not isinstance(name, str) or not name:
        return None
    try:
        with Image.open(folder / Path(name).name) as image:
            small = max(image.size) <= PIXEL_ART
            return _encode(image.convert("RGB"), small)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _encode(image: Image.Image, small: bool) -> Picture:
    if not small:
        image.thumbnail((LARGEST, LARGEST))
    kind, options = ("png", {"optimize": True}) if small else ("jpeg", {"quality": 85})
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    url = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(url=url, width=image.width, height=image.height, pixelated=small)
