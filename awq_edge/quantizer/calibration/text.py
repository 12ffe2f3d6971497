"""The calibration set: `samples` sequences of `length` tokens, drawn from text by a seed.

Sources: a file of text or of documents in JSON, a folder of such files, a hub data set
(`hub:NAME[:CONFIG[:SPLIT]]`), or the text that comes with the package.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge._package import DATA
from awq_edge.artifacts.paths import user_path
from awq_edge.artifacts.text_files import (
    Document,
    TextFile,
    read_text_file,
    read_text_folder,
    row_document,
)
from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.archs.vision import ImageTokens
from awq_edge.quantizer.report.schema import PACKAGED, CalibrationFile, CalibrationReport
from awq_edge.runtime.text_tokens import tokenize
from awq_edge.runtime.tokenizer import Tokenizer

HUB_PREFIX = "hub:"
SELF = "self"  # names the model's own samples, where a source is asked for
_PACKAGED_FILE = DATA / "calibration.txt"
# Text that is enough for any tokenizer: bytes per token are rarely above this.
_BYTES_PER_TOKEN = 12
_FLAG = "--calibration"


# What transformers' image processor makes of one image, by its name in the model's forward pass.
ImageInputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class CalibrationSet:
    """ids: int64 [samples, length]. source: what it was drawn from, in words. images: of each
    sample, None where it has none; empty for a model of text. files: that were read. left_out: why
    other files of a folder were not, by name. own_samples: that the model wrote itself,
    conversations among them. sha256: of ids and images."""

    ids: npt.NDArray[np.int64]
    source: str
    seed: int
    images: tuple[ImageInputs | None, ...] = ()
    files: tuple[CalibrationFile, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    own_samples: int = 0
    conversations: int = 0

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(self.ids.astype("<i8").tobytes())
        for inputs in self.images:
            digest.update(image_bytes(inputs or {}))
        return digest.hexdigest()


def image_bytes(inputs: ImageInputs) -> bytes:
    """The inputs of an image, with their names, to be hashed."""
    return b"".join(
        name.encode() + np.ascontiguousarray(array).tobytes() for name, array in inputs.items()
    )


def calibration_report(drawn: CalibrationSet, images: ImageTokens | None) -> CalibrationReport:
    """The calibration set as the report has it. images: of a vision-language model."""
    samples, length = drawn.ids.shape
    return CalibrationReport(
        source=drawn.source,
        files=drawn.files,
        left_out=dict(drawn.left_out),
        samples=samples,
        own_samples=drawn.own_samples,
        conversations=drawn.conversations,
        image_samples=sum(inputs is not None for inputs in drawn.images),
        image_tokens=0 if images is None else int((drawn.ids == images.image_id).sum()),
        length=length,
        seed=drawn.seed,
        sha256=drawn.sha256,
    )


def load_calibration(
    source: str | Path,
    tokenizer: Tokenizer,
    *,
    samples: int,
    length: int,
    seed: int,
    max_positions: int,
) -> CalibrationSet:
    """Draw the calibration set.

    source: a file or a folder of `awq_edge.artifacts.text_files`, "hub:...", or "packaged".
    length is cut to what the model takes.
    The text is cut into consecutive sequences and `samples` of them are drawn; where there are
    fewer, sequences that overlap are drawn. Raises ConfigError when the source cannot be read, is
    no text or has too little of it.
    """
    length = min(length, max_positions)
    wanted = samples * length * _BYTES_PER_TOKEN * 4  # four times, so that there is a choice
    text = _read(source, wanted)
    tokens = tokenize(text.documents, tokenizer)
    ids = np.asarray(tokens.ids, dtype=np.int64)
    prefix = np.asarray(tokens.prefix, dtype=np.int64)
    body = length - len(prefix)
    if body < 1 or len(ids) < body:
        raise ConfigError(
            f"calibration text {text.name} has {len(ids)} tokens, one sample needs {body}; give "
            "more text with --calibration, or a smaller --length"
        )
    random = np.random.default_rng(seed)
    whole = len(ids) // body
    if whole >= samples:
        starts = np.sort(random.choice(whole, size=samples, replace=False)) * body
    else:
        starts = np.sort(random.integers(0, len(ids) - body + 1, size=samples))
    drawn = np.stack([np.concatenate([prefix, ids[start : start + body]]) for start in starts])
    return CalibrationSet(drawn, text.name, seed, files=text.files, left_out=text.left_out)


@dataclass(frozen=True)
class _SourceText:
    """name: of the source, in words."""

    name: str
    documents: tuple[Document, ...]
    files: tuple[CalibrationFile, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


def _read(source: str | Path, wanted: int) -> _SourceText:
    """The documents of a source, about `wanted` bytes of them where there are as many."""
    if source == PACKAGED:
        packaged = read_text_file(_PACKAGED_FILE, _FLAG, wanted)
        return _SourceText(PACKAGED, packaged.documents, (_described(packaged, PACKAGED),))
    if str(source).startswith(HUB_PREFIX):
        return _read_hub(str(source), wanted)
    path = user_path(source, _FLAG)
    if not path.exists():
        raise ConfigError(
            f"{_FLAG} {path} does not exist; give a text file, a directory of text files, "
            f"or a hub data set as {HUB_PREFIX}NAME"
        )
    if not path.is_dir():
        file = read_text_file(path, _FLAG, wanted)
        return _SourceText(str(path), file.documents, (_described(file, path.name),))
    folder = read_text_folder(path, _FLAG, wanted)
    return _SourceText(
        str(path),
        tuple(document for file in folder.files for document in file.documents),
        tuple(_described(file, file.path.name) for file in folder.files),
        folder.left_out,
    )


def _described(file: TextFile, name: str) -> CalibrationFile:
    """A file as the report names it."""
    return CalibrationFile(
        name=name,
        sha256=file.sha256,
        bytes=file.bytes_read,
        documents=len(file.documents),
        whole=file.whole,
    )


def _read_hub(source: str, wanted: int) -> _SourceText:
    """Documents of a hub data set, streamed row by row; HF_TOKEN is respected."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise ConfigError(
            f"{_FLAG} {source}: hub data sets need the package datasets; "
            "pip install 'awq-edge[hub]', or give a text file"
        ) from None
    data_set, _, rest = source.removeprefix(HUB_PREFIX).partition(":")
    config, _, split = rest.partition(":")
    documents: list[Document] = []
    hashed, size = hashlib.sha256(), 0
    try:
        rows = datasets.load_dataset(
            data_set,
            config or None,
            split=split or "train",
            streaming=True,
            token=os.environ.get("HF_TOKEN"),
        )
        for number, row in enumerate(rows, 1):
            document = row_document(row, f"{_FLAG} {source}: row {number}")
            content = json.dumps(document.text or document.messages, default=str).encode()
            hashed.update(content)
            size += len(content)
            documents.append(document)
            if size >= wanted:
                break
    except ConfigError:
        raise
    except Exception as error:  # the library raises many kinds for network, name and licence
        text = " ".join(str(error).split())[:200]
        raise ModelError(
            f"hub data set '{data_set}' cannot be read ({type(error).__name__}: {text}); check the "
            "name and the network, set HF_TOKEN for a gated one, or give a text file"
        ) from None
    read = CalibrationFile(
        name=source, sha256=hashed.hexdigest(), bytes=size, documents=len(documents), whole=False
    )
    return _SourceText(source, tuple(documents), (read,))
