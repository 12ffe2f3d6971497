"""Calibration pictures: those of a folder, or some drawn from a seed where there are none.

A folder holds .png, .jpg, .jpeg and .webp files. A .txt file of the same name is what is said of
the picture: a first line that ends with a question mark is the question and the rest its answer;
otherwise all of it answers "Describe the image."
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from awq_edge.artifacts.input_files import open_plain, read_text
from awq_edge.errors import ConfigError, RuntimeUnavailableError

if TYPE_CHECKING:
    from PIL.Image import Image

QUESTION = "Describe the image."
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SIDES = (224, 336, 448)  # pixels, of drawn pictures


@dataclass(frozen=True)
class Picture:
    """image: RGB. question: asked about it. answer: "" where none is known."""

    image: Image
    question: str = QUESTION
    answer: str = ""


def load_pictures(folder: Path | None, count: int, random: np.random.Generator) -> list[Picture]:
    """`count` pictures: of the folder in a random order, again from the start where there are
    fewer; without a folder, drawn.

    Raises ConfigError for a folder without pictures, or with one that cannot be read.
    """
    _require_pillow()
    if folder is None:
        return [Picture(draw(random)) for _ in range(count)]
    if not folder.is_dir():
        raise ConfigError(f"--images {folder} is no directory; give one with {_names()} files")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise ConfigError(f"--images {folder}: the directory has no {_names()} files")
    order = [files[index] for index in random.permutation(len(files))]
    return [_read(order[index % len(order)]) for index in range(count)]


def draw(random: np.random.Generator) -> Image:
    """A picture of a gradient, filled shapes and noise whose grain is fine or coarse."""
    from PIL import Image, ImageDraw

    width, height = (int(side) for side in random.choice(_SIDES, size=2))
    corners = random.uniform(0, 255, size=(2, 2, 3))  # of the gradient
    right = np.linspace(0, 1, width)[None, :, None]
    down = np.linspace(0, 1, height)[:, None, None]
    top = corners[0, 0] * (1 - right) + corners[0, 1] * right
    bottom = corners[1, 0] * (1 - right) + corners[1, 1] * right
    pixels = top * (1 - down) + bottom * down
    grain = int(2 ** random.integers(0, 6))
    coarse = random.normal(
        0, random.uniform(0, 60), size=(-(-height // grain), -(-width // grain), 3)
    )
    pixels += np.kron(coarse, np.ones((grain, grain, 1)))[:height, :width]
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(random.integers(0, 8))):
        colour = tuple(int(value) for value in random.integers(0, 256, size=3))
        x, y = random.uniform(0, width), random.uniform(0, height)
        reach = random.uniform(0.05, 0.4) * min(width, height)
        box = (x - reach, y - reach, x + reach, y + reach * random.uniform(0.3, 1.0))
        kind = int(random.integers(0, 3))
        if kind == 0:
            pen.rectangle(box, fill=colour)
        elif kind == 1:
            pen.ellipse(box, fill=colour)
        else:
            pen.line(box, fill=colour, width=int(random.integers(1, 12)))
    return image


def _read(path: Path) -> Picture:
    from PIL import Image, UnidentifiedImageError

    try:
        with open_plain(path, ConfigError, name=f"--images {path}") as opened:
            image = Image.open(opened).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"--images {path}: cannot be read as a picture: {error}") from None
    words = path.with_suffix(".txt")
    if not words.exists():
        return Picture(image)
    text = read_text(words, error=ConfigError, name=f"--images {words}").strip()
    first, _, rest = text.partition("\n")
    if first.rstrip().endswith("?"):
        return Picture(image, first.strip(), rest.strip())
    return Picture(image, QUESTION, text)


def shrunk(image: Image, factor: float) -> Image:
    """The picture with both sides times `factor`, at least one pixel."""
    size: Any = tuple(max(1, int(side * factor)) for side in image.size)
    return image.resize(size)


def _names() -> str:
    return ", ".join(_SUFFIXES)


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        raise RuntimeUnavailableError(
            "calibration with images needs Pillow, which is not installed; install the 'host' "
            "extra: pip install 'awq-edge[host]'"
        ) from None
