"""Models and checkpoints as sources of logits, with torch. Needs the [host] extra."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from awq_edge.device.torch_device import device_name, torch_device
from awq_edge.errors import ConfigError, ModelError
from awq_edge.evaluate.arrays import Logits
from awq_edge.evaluate.logits_models import EvaluatedModel
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.files import ModelFiles
from awq_edge.model.w4a16 import dequantize
from awq_edge.runtime.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TransformersModel:
    """A transformers model in memory, with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Tokenizer, info: EvaluatedModel) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.info = info
        text_config = model.config.get_text_config()
        self.context = int(text_config.max_position_embeddings)
        self.vocab_size = int(text_config.vocab_size)
        self.packages = ("torch", "transformers")

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """See `LogitsModel`; one block."""
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.tensor([ids], device=self.model.device),
                use_cache=False,
                logits_to_keep=len(ids) - first,
            )
        logits = output.logits[0].float()
        # On a CPU the same memory as a NumPy array, whose loops are faster there.
        yield logits.numpy() if logits.device.type == "cpu" else logits

    def close(self) -> None:
        """Free the weights."""
        del self.model


class DenseModel(TransformersModel):
    """An unquantized Hugging Face model, run by transformers itself."""

    def __init__(self, path: Path, device: torch.device, dtype: str) -> None:
        """Load a model directory. Raises ModelError when transformers cannot, or leaves weights
        out."""
        # Checks files and headers first, with messages that name the damaged one.
        ModelFiles(path)
        tokenizer = Tokenizer(path)
        model = _load(path, device, DTYPES[dtype])
        info = EvaluatedModel(
            kind="model",
            path=str(path),
            runtime="transformers",
            device=device_name(device),
            dtype=dtype,
        )
        super().__init__(model, tokenizer, info)


class CheckpointModel(TransformersModel):
    """A checkpoint in the AutoAWQ gemm layout: transformers' model of its config, with dequantized
    weights. lm_head is as stored, 16 bits where the quantizer left it alone."""

    def __init__(self, path: Path, device: torch.device, dtype: str) -> None:
        """Load and dequantize a checkpoint directory, whole, in `dtype`.

        Raises ModelError for a checkpoint whose weights are not exactly those of its config.
        """
        checkpoint = Checkpoint.open(path)
        quantization = checkpoint.quantization
        assert quantization is not None, "open_torch_model looked for quantization_config"
        tokenizer = Tokenizer(path)
        weights = dict(dense_weights(checkpoint, DTYPES[dtype]))
        model = _load(path, device, DTYPES[dtype], weights)
        info = EvaluatedModel(
            kind="checkpoint",
            path=str(path),
            runtime="transformers",
            device=device_name(device),
            dtype=dtype,
            method=quantization.method,
            bits=quantization.bits,
            group_size=quantization.group_size,
            scheme=quantization.scheme,
        )
        super().__init__(model, tokenizer, info)


def dense_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the unquantized model by full name, the quantized ones dequantized.

    Raises ModelError for scales that are not finite.
    """
    for name in (*checkpoint.decoder.weight_shapes(), *checkpoint.kept_names):
        linear = name.removesuffix(".weight")
        if checkpoint.is_quantized(linear):
            values = dequantize(checkpoint.quantized(linear))
        else:
            values = checkpoint.dense(name)
        yield name, torch.from_numpy(values).to(dtype)


def open_torch_model(
    path: Path, *, quantized: bool, device: str | None, dtype: str | None, threads: int | None
) -> TransformersModel:
    """Load a model directory; see `awq_edge.evaluate.logits_models.open_logits_model`."""
    where = torch_device(device or "cpu")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: allowed values: {', '.join(DTYPES)}")
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"--threads {threads}: must be 1 or more")
        torch.set_num_threads(threads)
    kind = CheckpointModel if quantized else DenseModel
    return kind(path, where, dtype or "float32")


def _load(
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    weights: dict[str, torch.Tensor] | None = None,
) -> Any:
    """transformers' model of a directory, with its own weights or the given ones.

    Raises ModelError when transformers cannot load it, or any weight is missing or left over.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
    )

    with _quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            if weights is not None:
                for part in (config, config.get_text_config()):
                    if hasattr(part, "quantization_config"):
                        del part.quantization_config
            # The class itself: AutoModelForCausalLM takes no weights without a directory.
            classes = MODEL_FOR_CAUSAL_LM_MAPPING
            if type(config) not in classes:
                classes = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
            model, report = classes[type(config)].from_pretrained(
                path if weights is None else None,
                config=config,
                state_dict=weights,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises many kinds for what a directory may lack
            text = " ".join(str(error).split())
            raise ModelError(f"transformers cannot load {path}: {text}") from error
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


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings, which would stand between ours."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
