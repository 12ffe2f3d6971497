"""Formats of weights that are not read here, by the names that people know them by.

They are told from config.json, from what else lies in the folder, and from the names and dtypes of
the tensors, in that order.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_edge.artifacts.input_files import read_json
from awq_edge.errors import ModelError
from awq_edge.model.files import ModelFiles
from awq_edge.model.safetensors_files import TensorEntry

Entries = Mapping[str, TensorEntry]
Quantization = Mapping[str, Any]

READ_HERE = "weights of 16 and 32 bits, awq (version gemm) and compressed-tensors (pack-quantized)"
_GIVE_SOURCE = "give the unquantized model that it was made from"


@dataclass(frozen=True)
class ForeignFormat:
    """A format that is not read here. name: in common use. sign: it was told by. remedy: to do."""

    name: str
    sign: str
    remedy: str = _GIVE_SOURCE

    def __str__(self) -> str:
        return f"{self.name} ({self.sign})"

    def refusal(self, path: Path | str) -> ModelError:
        """The error of a stage that cannot read it."""
        return ModelError(
            f"{path} holds {self}, which is not read here; {self.remedy}; supported: {READ_HERE}"
        )


# quant_method of config.json, in lower case.
_METHODS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "intel/auto-round": "AutoRound",
    "autoround": "AutoRound",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "eetq": "EETQ",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "fouroversix": "NVFP4 (Four over Six)",
    "fp8": "FP8",
    "fp_quant": "FP-Quant",
    "gemma": "Gemma's own quantization",
    "gguf": "GGUF",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "marlin": "Marlin",
    "metal": "MLX",
    "mlx": "MLX",
    "modelopt": "ModelOpt",
    "modelopt_fp4": "ModelOpt NVFP4",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
    "quanto": "Quanto",
    "quark": "Quark",
    "sinq": "SINQ",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
# `format` of compressed-tensors.
_COMPRESSED = {
    "float-quantized": "FP8 (compressed-tensors)",
    "naive-quantized": "compressed-tensors' naive codes",
    "int-quantized": "INT8 (compressed-tensors)",
    "nvfp4-pack-quantized": "NVFP4 (compressed-tensors)",
    "mxfp4-pack-quantized": "MXFP4 (compressed-tensors)",
    "mxfp8-quantized": "MXFP8 (compressed-tensors)",
    "marlin-24": "Marlin 2:4 (compressed-tensors)",
    "sparse-24": "2:4 sparsity (compressed-tensors)",
    "sparse-bitmask": "sparse bitmasks (compressed-tensors)",
}

# Tensors that only one format has: pattern of the name, dtypes (none: any), the format's name.
_TENSORS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (r"^(model\.)?layers\.0\.attention\.wq\.weight$", (), "the original files of Llama or Mistral"),
    (r"\.(lora_[AB]|lora_magnitude_vector)\b", (), "a LoRA adapter"),
    (r"\.weight_scale_2$", (), "ModelOpt NVFP4"),
    (r"\.weight_global_scale$", (), "NVFP4 (compressed-tensors)"),
    (r"_blocks$", ("U8",), "MXFP4"),
    (r"\.quant_state\.bitsandbytes__", (), "bitsandbytes, 4 bits"),
    (r"\.SCB$", (), "bitsandbytes, 8 bits"),
    (r"\.pre_quant_scale$", (), "ModelOpt AWQ"),
    (r"\.g_idx$", (), "GPTQ"),
    (r"\.q_weight$|\.q_invperm$", (), "EXL2"),
    (r"\.trellis$", (), "EXL3"),
    (r"\.W_q$", (), "HQQ"),
    (r"\.codebooks$", (), "AQLM"),
    (r"\.centroids\.weight$|\.centroids$", (), "VPTQ"),
    (r"\.weight_scales$", (), "EETQ"),
    (r"\.weight\._data$|\.weight\._scale$", (), "Quanto"),
    (r"\.weight:?_qdata$|\._weight_qdata$", (), "torchao"),
    (r"\.weight_scale_inv$", (), "FP8"),
    (r"", ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), "FP8"),
    (r"", ("F8_E8M0",), "MXFP8"),
    (r"", ("F4",), "FP4"),
    (r"", ("F6_E2M3", "F6_E3M2"), "FP6"),
    (r"\.weight$", ("U32",), "MLX"),
    (r"\.qweight$", (), "AWQ or GPTQ"),
    (r"\.weight_packed$", (), "compressed-tensors"),
    (r"\.weight$", ("I8",), "INT8"),
    (r"\.weight$", ("U8",), "weights packed into bytes"),
)
_WITHOUT_CONFIG = (
    "config.json has no quantization_config: take the config.json that belongs to these files"
)


def foreign_format(
    path: Path, config: Mapping[str, Any], entries: Entries | None = None
) -> ForeignFormat | None:
    """The format of a model directory that is not read here, None for one that may be.

    config: of config.json. entries: of its tensors, where they are known.
    """
    from awq_edge.model.layouts import quantization_config

    quantization = quantization_config(config)
    if quantization is not None:
        return of_config(quantization)
    return _of_files(path) or (None if entries is None else _of_tensors(entries))


def refuse_foreign(path: Path, config: Mapping[str, Any], entries: Entries | None = None) -> None:
    """Raise ModelError, with the format's name and what to do, where it is not read here."""
    foreign = foreign_format(path, config, entries)
    if foreign is not None:
        raise foreign.refusal(path)


def of_config(quantization: Quantization) -> ForeignFormat | None:
    """The format of a quantization_config, None where a layout here may read it."""
    method = quantization.get("quant_method")
    if isinstance(method, str):
        known = _OF_METHOD.get(method.lower())
        if known is not None:
            return known(quantization)
        name = _METHODS.get(method.lower(), f"weights of quant_method '{method}'")
        return ForeignFormat(_detailed(name, quantization), f"quant_method '{method}'")
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        return ForeignFormat(
            _detailed("bitsandbytes", quantization), "load_in_4bit or load_in_8bit"
        )
    if "bits" in quantization and "group_size" in quantization and "version" not in quantization:
        return ForeignFormat("MLX", "`quantization` of bits and groups without a quant_method")
    if "quant_algo" in quantization:
        return _of_modelopt(quantization, "quant_algo in config.json")
    return ForeignFormat("quantized weights of no known format", "no quant_method in config.json")


def _of_awq(quantization: Quantization) -> ForeignFormat | None:
    version = str(quantization.get("version") or quantization.get("format") or "gemm").lower()
    if version == "gemm":
        return None
    return ForeignFormat(f"AWQ in version {version}", "quant_method 'awq'")


def _of_auto_round(quantization: Quantization) -> ForeignFormat | None:
    """AutoRound packs as others do; what it packs as AutoAWQ is the same bytes."""
    packing = str(quantization.get("packing_format") or quantization.get("backend") or "auto_gptq")
    if packing.lower() in AUTO_ROUND_AWQ:
        return None
    return ForeignFormat(f"AutoRound packed as {packing}", "quant_method 'auto-round'")


# packing_format of AutoRound where the tensors are those of AutoAWQ's gemm.
AUTO_ROUND_AWQ = ("auto_round:auto_awq", "auto_round:awq", "auto_awq", "awq")


def _of_compressed(quantization: Quantization) -> ForeignFormat | None:
    stored = str(quantization.get("format"))
    name = _COMPRESSED.get(stored)
    return None if name is None else ForeignFormat(name, f"format '{stored}'")


def _of_modelopt(quantization: Quantization, sign: str) -> ForeignFormat:
    algorithm = quantization.get("quant_algo")
    if algorithm is None:
        algorithm = f"KV cache in {quantization.get('kv_cache_quant_algo')}"
    return ForeignFormat(f"ModelOpt {algorithm}", sign)


_OF_METHOD: dict[str, Callable[[Quantization], ForeignFormat | None]] = {
    "awq": _of_awq,
    "auto-round": _of_auto_round,
    "autoround": _of_auto_round,
    "intel/auto-round": _of_auto_round,
    "compressed-tensors": _of_compressed,
    "modelopt": lambda quantization: _of_modelopt(quantization, "quant_method 'modelopt'"),
    "modelopt_fp4": lambda quantization: _of_modelopt(quantization, "quant_method 'modelopt_fp4'"),
}


def _detailed(name: str, quantization: Quantization) -> str:
    """The name with its bits, where the configuration has them."""
    if name == "bitsandbytes":
        bits: object = 4 if quantization.get("load_in_4bit") else 8
    else:
        bits = quantization.get("bits")
    return f"{name}, {bits} bits" if isinstance(bits, int) else name


def _of_files(path: Path) -> ForeignFormat | None:
    """The format that other files of the folder tell."""
    described = path / "hf_quant_config.json"
    if described.exists():
        table = read_json(described).get("quantization")
        if isinstance(table, dict) and (
            table.get("quant_algo") is not None or table.get("kv_cache_quant_algo") is not None
        ):
            return _of_modelopt(table, described.name)
    safetensors = any(path.glob("*.safetensors"))
    if (path / "adapter_config.json").exists() and not (path / "model.safetensors").exists():
        if not [file for file in path.glob("*.safetensors") if not file.name.startswith("adapter")]:
            return ForeignFormat(
                "a LoRA adapter",
                "adapter_config.json",
                "merge it into its base model first (peft's merge_and_unload and save_pretrained)",
            )
    return None if safetensors else of_names(file.name for file in path.glob("*"))


def of_names(names: Iterable[str]) -> ForeignFormat | None:
    """The format of files without safetensors among them, by their names alone."""
    listed = sorted(names)
    for pattern, format_name, remedy in _OTHER_FILES:
        if files := fnmatch.filter(listed, pattern):
            return ForeignFormat(format_name, files[0], remedy)
    return None


_FROM_SAFETENSORS = "give the Hugging Face model, in safetensors, that it was made from"
GGUF_FILE = ForeignFormat("GGUF", "its first bytes", _FROM_SAFETENSORS)
_OTHER_FILES = (
    ("*.gguf", "GGUF", _FROM_SAFETENSORS),
    ("*.ggml*", "GGML", _FROM_SAFETENSORS),
    ("weights*.npz", "MLX weights in .npz", _FROM_SAFETENSORS),
    ("consolidated*.pth", "the original files of Llama", "convert them with transformers first"),
    ("rank*.engine", "engines of TensorRT-LLM", _FROM_SAFETENSORS),
    ("*.onnx", "an ONNX graph", _FROM_SAFETENSORS),
    ("tf_model.h5", "TensorFlow weights", _FROM_SAFETENSORS),
    ("flax_model.msgpack", "Flax weights", _FROM_SAFETENSORS),
)


def _of_tensors(entries: Entries) -> ForeignFormat | None:
    """The format that tensors tell, where config.json says nothing of a quantization."""
    for pattern, dtypes, format_name in _TENSORS:
        compiled = re.compile(pattern)
        for name, entry in entries.items():
            if (not dtypes or entry.dtype in dtypes) and compiled.search(name):
                packed = format_name in ("AWQ or GPTQ", "compressed-tensors")
                return ForeignFormat(
                    format_name,
                    f"'{name}', {entry.dtype}",
                    _WITHOUT_CONFIG if packed else _GIVE_SOURCE,
                )
    return None


def foreign_of_directory(path: Path) -> ForeignFormat | None:
    """`foreign_format` of a directory's files. Raises ModelError where config.json is damaged."""
    files = ModelFiles.of_foreign(path)
    return foreign_format(path, files.config, files.entries)
