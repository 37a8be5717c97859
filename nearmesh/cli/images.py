"""Image files as a model wants them: layout, channels, size and scale from the input's dtype and shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nearmesh.errors import ConfigError, InvalidInput
from nearmesh.tensors import Array, numpy_dtype

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
WHITE = 255.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What happens to pixels on their way into a float input: (pixel / 255 - mean) / std for each channel."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    # Width and height to resize to; without it, the model's if it has a fixed one, else the image's own.
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not all(self.std):
            raise InvalidInput(f"--std {', '.join(map(str, self.std))}: pixels cannot be divided by 0")

    @property
    def plain(self) -> bool:
        return not any(self.mean) and set(self.std) == {1.0}


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the axes of one image are. A size of -1 is any."""

    channels: int
    height: int
    width: int
    channels_first: bool
    batched: bool


def read_image(path: Path, name: str, datatype: str, shape: Sequence[int], scaling: Scaling) -> Array:
    """The image as one row of input `name`. Raises InvalidInput, ConfigError when Pillow is missing."""
    dtype = numpy_dtype(datatype, name=name)
    if dtype.kind not in "fiu":
        raise InvalidInput(f"input {name!r} is {datatype}; an image fits a float or an integer input")
    if dtype.kind != "f" and not scaling.plain:
        raise InvalidInput(f"input {name!r} is {datatype}; --mean and --std are for float inputs")
    layout = _layout(name, shape, is_float=dtype.kind == "f")
    pixels = np.asarray(_sized(_open(path, "L" if layout.channels == 1 else "RGB"), layout, scaling))
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    values = pixels / WHITE if dtype.kind == "f" else pixels
    if not scaling.plain:
        values = (values - _each(name, scaling.mean, layout)) / _each(name, scaling.std, layout)
    values = values.transpose(2, 0, 1) if layout.channels_first else values
    values = np.ascontiguousarray(values, dtype)
    if len(shape) == 2:
        return values.reshape(pixels.shape[:2])
    return values[None] if layout.batched else values


def _layout(name: str, shape: Sequence[int], *, is_float: bool) -> _Layout:
    """Float inputs are taken for channels first, integer ones for channels last, unless their shape says otherwise."""
    if len(shape) == 2:
        return _Layout(1, shape[0], shape[1], channels_first=True, batched=False)
    if len(shape) not in (3, 4):
        raise InvalidInput(f"input {name!r} has shape {list(shape)}; an image fits 2 to 4 dimensions")
    first, middle, last = shape[-3:]
    channels_first = first in (1, 3) or (is_float and last not in (1, 3))
    channels = first if channels_first else last
    if channels not in (-1, 1, 3):
        raise InvalidInput(f"input {name!r} has shape {list(shape)}, {channels} channels; images have 1 or 3")
    height, width = (middle, last) if channels_first else (first, middle)
    return _Layout(3 if channels == -1 else channels, height, width, channels_first, batched=len(shape) == 4)


def _open(path: Path, mode: str) -> Image:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ConfigError(f"{path}: reading images needs Pillow: pip install 'nearmesh[images]'") from None
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"{path}: not an image that can be read: {error}") from None
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}") from None


def _sized(image: Image, layout: _Layout, scaling: Scaling) -> Image:
    width, height = scaling.size or image.size
    size = (layout.width if layout.width > 0 else width, layout.height if layout.height > 0 else height)
    if scaling.size and size != scaling.size:
        raise InvalidInput(f"--resize {width}x{height}, but the model takes {size[0]}x{size[1]}")
    return image if size == image.size else image.resize(size)


def _each(name: str, values: Sequence[float], layout: _Layout) -> Array:
    if len(values) not in (1, layout.channels):
        raise InvalidInput(f"input {name!r} has {layout.channels} channels; --mean and --std take 1 or that many")
    return np.asarray(values)
