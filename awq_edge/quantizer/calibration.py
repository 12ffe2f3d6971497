"""The calibration set: `samples` sequences of `length` tokens, drawn from text by a seed.

Sources: a text file, a directory of text files, a hub data set (`hub:NAME[:CONFIG[:SPLIT]]`), or
the text that comes with the package.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.errors import ConfigError, ModelError
from awq_edge.runtime.tokenizer import Tokenizer

HUB_PREFIX = "hub:"
PACKAGED = "packaged"
_PACKAGED_FILE = Path(__file__).resolve().parent.parent / "data" / "calibration.txt"
# Text that is enough for any tokenizer: bytes per token are rarely above this.
_BYTES_PER_TOKEN = 12
_TEXT_COLUMNS = ("text", "content", "document", "sentence")


# What transformers' image processor makes of one image, by its name in the model's forward pass.
ImageInputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class CalibrationSet:
    """ids: int64 [samples, length]. source: what it was drawn from, in words. images: of each
    sample, None where it has none; empty for a model of text. sha256: of ids and images."""

    ids: npt.NDArray[np.int64]
    source: str
    seed: int
    images: tuple[ImageInputs | None, ...] = ()

    @property
    def sha256(self) -> str:
        found = hashlib.sha256(self.ids.astype("<i8").tobytes())
        for inputs in self.images:
            for name, array in (inputs or {}).items():
                found.update(name.encode())
                found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


def load_calibration(
    source: str | Path | None,
    tokenizer: Tokenizer,
    *,
    samples: int,
    length: int,
    seed: int,
    max_positions: int,
) -> CalibrationSet:
    """Draw the calibration set.

    source: a file, a directory (its *.txt, *.md files, in the order of their names), "hub:...", or
    None for the packaged text. length is cut to what the model takes.
    The text is cut into consecutive sequences and `samples` of them are drawn; where there are
    fewer, sequences that overlap are drawn. Raises ConfigError when the source cannot be read or
    has too little text.
    """
    length = min(length, max_positions)
    wanted = samples * length * _BYTES_PER_TOKEN * 4  # four times, so that there is a choice
    name, text = _read(source, wanted)
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
    bos = tokenizer.encode("")  # what the model expects a text to begin with, often one token
    bos_ids = np.asarray(bos[:1] if len(bos) == 1 else [], dtype=np.int64)
    body = length - len(bos_ids)
    if body < 1 or len(ids) < body:
        raise ConfigError(
            f"calibration text {name} has {len(ids)} tokens, one sample needs {body}; give more "
            "text with --calibration, or a smaller --length"
        )
    random = np.random.default_rng(seed)
    whole = len(ids) // body
    if whole >= samples:
        starts = np.sort(random.choice(whole, size=samples, replace=False)) * body
    else:
        starts = np.sort(random.integers(0, len(ids) - body + 1, size=samples))
    drawn = np.stack([np.concatenate([bos_ids, ids[start : start + body]]) for start in starts])
    return CalibrationSet(drawn, name, seed)


def _read(source: str | Path | None, wanted: int) -> tuple[str, str]:
    """Name and text of a source, no more than about `wanted` bytes of it."""
    if source is None:
        return PACKAGED, _read_file(_PACKAGED_FILE, wanted)
    text = str(source)
    if text.startswith(HUB_PREFIX):
        return text, _read_hub(text.removeprefix(HUB_PREFIX), wanted)
    path = Path(text).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".txt", ".md") and p.is_file())
        if not files:
            raise ConfigError(f"--calibration {path}: the directory has no .txt or .md files")
        pieces: list[str] = []
        size = 0
        for file in files:
            # Every file gets a share, so that the last ones are not forgotten.
            pieces.append(_read_file(file, max(wanted // len(files), 1 << 16)))
            size += len(pieces[-1])
        return str(path), "\n\n".join(pieces)
    if not path.exists():
        raise ConfigError(
            f"--calibration {path} does not exist; give a text file, a directory of text files, "
            f"or a hub data set as {HUB_PREFIX}NAME"
        )
    return str(path), _read_file(path, wanted)


def _read_file(path: Path, wanted: int) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(wanted)
    except OSError as error:
        raise ConfigError(f"--calibration {path}: cannot be read: {error.strerror}") from None
    try:
        # A read that ends inside a character leaves up to three bytes of it.
        return data.decode("utf-8") if len(data) < wanted else data.decode("utf-8", "ignore")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--calibration {path}: not UTF-8 at byte {error.start}; convert it (iconv -t UTF-8)"
        ) from None


def _read_hub(name: str, wanted: int) -> str:
    """Text of a hub data set, streamed row by row; HF_TOKEN is respected."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise ConfigError(
            f"--calibration {HUB_PREFIX}{name}: hub data sets need the package datasets; "
            "pip install 'awq-edge[hub]', or give a text file"
        ) from None
    data_set, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = datasets.load_dataset(
            data_set,
            config or None,
            split=split or "train",
            streaming=True,
            token=os.environ.get("HF_TOKEN"),
        )
        pieces: list[str] = []
        size = 0
        for row in rows:
            column = next((c for c in _TEXT_COLUMNS if isinstance(row.get(c), str)), None)
            if column is None:
                raise ConfigError(
                    f"--calibration {HUB_PREFIX}{name}: no column of {', '.join(_TEXT_COLUMNS)} "
                    f"in {', '.join(row)}"
                )
            pieces.append(row[column])
            size += len(row[column])
            if size >= wanted:
                break
        return "\n\n".join(pieces)
    except ConfigError:
        raise
    except Exception as error:  # the library raises many kinds for network, name and licence
        text = " ".join(str(error).split())[:200]
        raise ModelError(
            f"hub data set '{data_set}' cannot be read ({type(error).__name__}: {text}); check the "
            "name and the network, set HF_TOKEN for a gated one, or give a text file"
        ) from None
