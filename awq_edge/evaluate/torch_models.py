"""Models and checkpoints as sources of logits, with torch. Needs the [host] extra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from awq_edge.errors import ConfigError, ModelError, RuntimeUnavailableError
from awq_edge.evaluate.sources import Float32, LogitsSource, SourceInfo
from awq_edge.model_files import ModelFiles
from awq_edge.runtime.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ModelSource:
    """An unquantized Hugging Face model, run by transformers itself."""

    def __init__(self, path: Path, device: torch.device, dtype: str) -> None:
        """Load a model directory. Raises ModelError when transformers cannot, or not wholly."""
        # Checks files and headers first, with messages that name the damaged one.
        ModelFiles(path)
        self.tokenizer = Tokenizer(path)
        self._model = _load(path, device, DTYPES[dtype])
        config = self._model.config.get_text_config()
        self.context = int(config.max_position_embeddings)
        self.info = SourceInfo(
            kind="model",
            path=str(path),
            runtime="transformers",
            device=_device_name(device),
            dtype=dtype,
        )
        self.packages = ("torch", "transformers")

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Float32]:
        """See `LogitsSource`; one block."""
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([ids], device=self._model.device),
                use_cache=False,
                logits_to_keep=len(ids) - first,
            )
        yield _to_numpy(output.logits[0])

    def close(self) -> None:
        """Free the weights."""
        del self._model


def open_torch_source(
    path: Path, *, quantized: bool, device: str | None, dtype: str | None, threads: int | None
) -> LogitsSource:
    """Load a model directory; see `awq_edge.evaluate.sources.open_source`."""
    where = _device(device or "cpu")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: allowed values: {', '.join(DTYPES)}")
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"--threads {threads}: must be 1 or more")
        torch.set_num_threads(threads)
    return ModelSource(path, where, dtype or "float32")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: allowed values: cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: allowed values: cpu, cuda, cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise RuntimeUnavailableError(
                f"--device {name}: torch {torch.__version__} sees {count} CUDA device(s); "
                "use --device cpu"
            )
    return device


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    from awq_edge.device.cpu import describe_cpu

    return describe_cpu().name


def _to_numpy(logits: torch.Tensor) -> Float32:
    array: Float32 = logits.float().cpu().numpy()
    return array


def _load(path: Path, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises many kinds for what a directory may lack
        text = " ".join(str(error).split())
        raise ModelError(f"transformers cannot load {path}: {text}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    # transformers fills these with random numbers, or drops them, and only warns.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(kind, ()))
        if names:
            raise ModelError(
                f"{path}: {kind.replace('_keys', '')} weights: {', '.join(names[:5])}"
                f"{' ...' if len(names) > 5 else ''}; the directory and its config.json do not "
                "belong together"
            )
    return model.to(device).eval()
