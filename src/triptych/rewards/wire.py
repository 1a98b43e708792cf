"""Samples as JSON, their pictures as PNG: what a reward service and its clients exchange.

A picture arrives as it was decoded, pixel by pixel. What arrives is data, never code.
"""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from triptych.trajectory import Picture, Sample, Task

PLAIN = ("id", "prompt", "metadata", "columns", "answer", "target_text")
"""What of a task is JSON as it is."""


def png_of(picture: Picture) -> str:
    """A picture, uint8 ``[H, W, 3]``, as PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(picture.cpu().numpy()).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


class Decoder:
    """PNG in base64 to pictures, uint8 ``[H, W, 3]``, until ``pixels`` are used up.

    The size is read before anything is unpacked. Raises ValueError for what is no PNG, broken or too large.
    """

    def __init__(self, pixels: int) -> None:
        self._left = pixels

    def __call__(self, text: str) -> Picture:
        png = base64.b64decode(text, validate=True)
        if not png.startswith(b"\x89PNG\r\n\x1a\n") or png[12:16] != b"IHDR":
            raise ValueError("a picture that is no PNG")
        width, height = (int.from_bytes(png[i : i + 4]) for i in (16, 20))
        self._left -= width * height
        if self._left < 0:
            raise ValueError(f"too many pixels, the last picture has {width} x {height}")
        try:
            with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
                if image.size != (width, height):
                    raise ValueError("it tells two sizes")
                return torch.from_numpy(np.array(image.convert("RGB")))
        except Exception as error:  # of half a dozen kinds, by where it is broken
            raise ValueError(f"a broken PNG: {error}") from None


def as_row(sample: Sample) -> dict[str, Any]:
    """A sample as JSON. ``result`` names the picture or text that is the completion, if it has a name."""
    task, named = sample.task, {**sample.texts, **sample.pictures}
    result = next((name for name, value in named.items() if value is sample.completion), "")
    drawn = png_of(sample.completion) if isinstance(sample.completion, Tensor) else None
    return {
        **{name: getattr(task, name) for name in PLAIN},
        "source": None if task.source is None else png_of(task.source),
        "texts": sample.texts,
        "pictures": {name: png_of(p) for name, p in sample.pictures.items() if name != result},
        "result": result,
        "picture": drawn,
        "text": sample.completion if drawn is None else None,
    }


def as_sample(row: Mapping[str, Any], decode: Decoder) -> Sample:
    """The sample of :func:`as_row`; ValueError for a picture that is refused, or not one completion."""
    if (row["picture"] is None) == (row["text"] is None):
        raise ValueError("a sample has either a picture or a text")
    completion: str | Picture = row["text"] if row["picture"] is None else decode(row["picture"])
    texts, pictures = dict(row["texts"]), {name: decode(png) for name, png in row["pictures"].items()}
    if row["result"] and isinstance(completion, str):
        texts[row["result"]] = completion
    elif row["result"] and isinstance(completion, Tensor):
        pictures[row["result"]] = completion
    source = None if row["source"] is None else decode(row["source"])
    task = Task(**{name: row[name] for name in PLAIN}, source=source)
    return Sample(task=task, texts=texts, pictures=pictures, completion=completion)
