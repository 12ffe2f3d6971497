"""Models that can be evaluated: anything that gives logits for token ids.

bundle       through the session of its runtime               SessionLogitsModel (here)
checkpoint   AutoAWQ layout, dequantized                      torch_models.CheckpointModel
model        Hugging Face, unquantized, run by transformers   torch_models.DenseModel
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from awq_edge.artifacts.directories import MANIFEST, Bundle
from awq_edge.artifacts.paths import user_path
from awq_edge.artifacts.schema import Record
from awq_edge.errors import ConfigError
from awq_edge.evaluate.arrays import Float32, Logits
from awq_edge.model.archs import require_known_keys
from awq_edge.model.files import ModelFiles
from awq_edge.model.foreign_formats import refuse_foreign
from awq_edge.model.hub import resolve_model
from awq_edge.model.layouts import quantization_config
from awq_edge.model.source import verify_weights
from awq_edge.runtime.model import Model, load
from awq_edge.runtime.tokenizer import Tokenizer


class EvaluatedModel(Record):
    """The model that computes the logits."""

    kind: Literal["bundle", "checkpoint", "model"]  # of the target
    path: str
    runtime: str  # that executes it
    device: str
    dtype: str  # of the activations
    accuracy_level: int | None = None  # of MatMulNBits, None elsewhere
    # method, bits, group_size, scheme: of the quantization, None where there is none
    method: str | None = None
    bits: int | None = None
    group_size: int | None = None
    scheme: str | None = None


class LogitsModel(Protocol):
    """A loaded model with its tokenizer."""

    @property
    def info(self) -> EvaluatedModel: ...

    @property
    def packages(self) -> Sequence[str]:
        """The packages that compute, for the versions in a report."""
        ...

    @property
    def context(self) -> int:
        """Tokens that one input may have."""
        ...

    @property
    def vocab_size(self) -> int:
        """The number of logits of one position; often more than the tokenizer has ids."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """Logits after ids[first], ids[first + 1], ... up to the last, in consecutive blocks.

        Each block is float32 [rows, vocab]: a torch tensor where a GPU computed it, else a NumPy
        array. `ids` is the whole input: nothing came before it.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


class SessionLogitsModel:
    """A bundle, through the session of its runtime."""

    def __init__(self, model: Model) -> None:
        self.model = model
        manifest = model.manifest
        quantized = manifest.method != "none"
        self.info = EvaluatedModel(
            kind="bundle",
            path=str(model.bundle.path),
            runtime=model.session.info.backend,
            device=model.session.info.device,
            dtype=manifest.activation_dtype,
            accuracy_level=manifest.accuracy_level,
            method=manifest.method if quantized else None,
            bits=manifest.bits if quantized else None,
            group_size=manifest.group_size if quantized else None,
            scheme=manifest.scheme if quantized else None,
        )
        self.packages = tuple(model.session.info.versions)

    @property
    def context(self) -> int:
        """The context of the bundle's export; the session may be opened for less."""
        return self.model.manifest.context

    @property
    def vocab_size(self) -> int:
        """The vocabulary of the bundle's export."""
        return self.model.manifest.vocab_size

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Float32]:
        """See `LogitsModel`; one block a prefill chunk."""
        session = self.model.session
        session.reset()
        for start in range(0, len(ids), session.prefill_chunk):
            piece = ids[start : start + session.prefill_chunk]
            positions = range(max(first - start, 0), len(piece))
            logits = session.logits(piece, positions)
            if len(positions):
                yield logits

    def close(self) -> None:
        """Free weights and KV cache."""
        self.model.close()


def is_bundle(target: str) -> bool:
    """True if `open_logits_model` would open a bundle."""
    return (user_path(target, "TARGET") / MANIFEST).exists()


def open_logits_model(
    target: str,
    *,
    window: int,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    allow_unknown_keys: bool = False,
    verify: bool = True,
) -> LogitsModel:
    """Load a bundle, a checkpoint, or a model (a directory, a hub id, or `demo`).

    window: tokens of the longest input; a bundle's KV cache is no larger.
    device, dtype: "cpu", "cuda"; "float32", ...; for checkpoints and models; None: the CPU with
        float32.
    threads: CPU threads, None for the physical cores.
    allow_unknown_keys: ignore keys of config.json that only a newer transformers may know.
    verify: compare the weights of a checkpoint with the hashes in its quantization report.
    Raises ConfigError for a choice that a bundle does not have, and the errors of loading.
    """
    directory = user_path(target, "TARGET")
    if is_bundle(target):
        for flag, value in (("--device", device), ("--dtype", dtype)):
            if value is not None:
                raise ConfigError(
                    f"{flag} {value}: a bundle runs as it was exported; leave {flag} out, or "
                    "evaluate the checkpoint"
                )
        exported = Bundle.open(directory, verify=False).manifest.context
        context = max(1, min(window, exported))
        return SessionLogitsModel(load(directory, context=context, threads=threads))
    # A target that is not there is the error, whatever is installed.
    path = resolve_model(target)
    files = ModelFiles(path)
    refuse_foreign(path, files.config, files.entries)
    require_known_keys(files.config, target, allow=allow_unknown_keys)
    if verify:
        verify_weights(files)
    quantized = quantization_config(files.config) is not None
    from awq_edge.evaluate.torch_models import open_torch_model

    source = open_torch_model(
        path, quantized=quantized, device=device, dtype=dtype, threads=threads
    )
    # As it was given: a hub id or "demo" says more than the folder that it was found in.
    source.info = source.info.model_copy(update={"path": target})
    return source
