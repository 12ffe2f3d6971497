"""Checkpoints of other tools that are not read: every stage says their name, `inspect` shows them.

Configurations and tensor names are those that the tools write; of the values nobody reads any.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from awq_edge.cli import app
from awq_edge.errors import ModelError
from awq_edge.fit.models import find_model
from awq_edge.inspect.artifact import inspect_artifact
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.foreign_formats import of_config

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
BITS = {"F8_E4M3": 8, "F8_E8M0": 8, "U8": 8, "I8": 8, "U32": 32, "I32": 32, "F16": 16, "F32": 32,
        "BF16": 16, "F4": 4}  # fmt: skip
UP = "model.layers.0.mlp.up_proj"
Tensors = dict[str, tuple[str, list[int]]]


def save(path: Path, tensors: Tensors) -> None:
    """A safetensors file of zeros, of dtypes that NumPy does not have too."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))


DENSE: Tensors = {"model.embed_tokens.weight": ("F16", [40, 64])}
FP8: Tensors = {f"{UP}.weight": ("F8_E4M3", [96, 64]), f"{UP}.weight_scale_inv": ("F32", [1, 1])}
NVFP4: Tensors = {
    f"{UP}.weight": ("U8", [96, 32]),
    f"{UP}.weight_scale": ("F8_E4M3", [96, 4]),
    f"{UP}.weight_scale_2": ("F32", []),
}
CT_NVFP4: Tensors = {
    f"{UP}.weight_packed": ("U8", [96, 32]),
    f"{UP}.weight_scale": ("F8_E4M3", [96, 4]),
    f"{UP}.weight_global_scale": ("F32", [1]),
}
MXFP4: Tensors = {
    "model.layers.0.mlp.experts.down_proj_blocks": ("U8", [4, 96, 2, 16]),
    "model.layers.0.mlp.experts.down_proj_scales": ("U8", [4, 96, 2]),
}
MLX: Tensors = {
    f"{UP}.weight": ("U32", [96, 8]),
    f"{UP}.scales": ("F16", [96, 1]),
    f"{UP}.biases": ("F16", [96, 1]),
}
NF4: Tensors = {
    f"{UP}.weight": ("U8", [96 * 32, 1]),
    f"{UP}.weight.absmax": ("U8", [96]),
    f"{UP}.weight.quant_state.bitsandbytes__nf4": ("U8", [80]),
}
INT8: Tensors = {f"{UP}.weight": ("I8", [96, 64]), f"{UP}.SCB": ("F32", [96])}
GPTQ: Tensors = {
    f"{UP}.qweight": ("I32", [8, 96]),
    f"{UP}.qzeros": ("I32", [1, 12]),
    f"{UP}.scales": ("F16", [1, 96]),
    f"{UP}.g_idx": ("I32", [64]),
}
AWQ: Tensors = {
    f"{UP}.qweight": ("I32", [64, 12]),
    f"{UP}.qzeros": ("I32", [1, 12]),
    f"{UP}.scales": ("F16", [1, 96]),
}
MODELOPT = {"producer": {"name": "modelopt", "version": "0.45.0"}, "quantization": {}}


def modelopt(**quantization: Any) -> dict[str, Any]:
    return {**MODELOPT, "quantization": quantization}


def compressed(stored: str) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": stored, "config_groups": {}}


# name, quantization_config, tensors, other files -> what the line says
CASES: dict[str, tuple[dict[str, Any] | None, Tensors, dict[str, Any], str]] = {
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, FP8, {}, "FP8 ("),
    "fp8 without config": (None, FP8, {}, "FP8 ("),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, FP8, {}, "FP8 (FBGEMM)"),
    "llm-compressor fp8": (compressed("float-quantized"), FP8, {}, "FP8 (compressed-tensors)"),
    "llm-compressor int8": (compressed("int-quantized"), {}, {}, "INT8 (compressed-tensors)"),
    "llm-compressor nvfp4": (compressed("nvfp4-pack-quantized"), CT_NVFP4, {}, "NVFP4 ("),
    "llm-compressor mxfp4": (compressed("mxfp4-pack-quantized"), {}, {}, "MXFP4 ("),
    "nvfp4 without config": (None, CT_NVFP4, {}, "NVFP4 ("),
    "mxfp4": ({"quant_method": "mxfp4"}, MXFP4, {}, "MXFP4 ("),
    "mxfp4 without config": (None, MXFP4, {}, "MXFP4 ("),
    "mlx": ({"group_size": 64, "bits": 4}, MLX, {}, "MLX ("),
    "mlx without config": (None, MLX, {}, "MLX ("),
    "modelopt": (
        None, NVFP4, {"hf_quant_config.json": modelopt(quant_algo="NVFP4")}, "ModelOpt NVFP4 ("
    ),
    "modelopt awq": (
        None, {}, {"hf_quant_config.json": modelopt(quant_algo="W4A16_AWQ", group_size=128)},
        "ModelOpt W4A16_AWQ ("
    ),
    "modelopt kv": (
        None, {}, {"hf_quant_config.json": modelopt(quant_algo=None, kv_cache_quant_algo="FP8")},
        "ModelOpt KV cache in FP8 ("
    ),
    "modelopt in config": (
        {"quant_method": "modelopt", "quant_algo": "FP8"}, FP8, {}, "ModelOpt FP8 ("
    ),
    "modelopt by tensors": (None, NVFP4, {}, "ModelOpt NVFP4 ("),
    "nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True}, NF4, {}, "bitsandbytes, 4 bits ("
    ),
    "nf4, early": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, NF4, {}, "bitsandbytes"),
    "nf4 without config": (None, NF4, {}, "bitsandbytes, 4 bits ("),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, INT8, {}, "bitsandbytes, 8"),
    "int8 without config": (None, INT8, {}, "bitsandbytes, 8 bits ("),
    "gptq": ({"quant_method": "gptq", "bits": 4}, GPTQ, {}, "GPTQ, 4 bits ("),
    "gptq without config": (None, GPTQ, {}, "GPTQ ("),
    "awq without config": (None, AWQ, {}, "AWQ or GPTQ ("),
    "gemv": ({"quant_method": "awq", "version": "GEMV", "bits": 4}, AWQ, {}, "AWQ in version gemv"),
    "autoround": (
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4},
        GPTQ, {}, "AutoRound packed as auto_round:auto_gptq ("
    ),
    "autoround, early": ({"quant_method": "intel/auto-round", "bits": 4}, GPTQ, {}, "AutoRound "),
    "hqq": ({"quant_method": "hqq"}, {f"{UP}.W_q": ("U8", [48, 64])}, {}, "HQQ ("),
    "eetq": ({"quant_method": "eetq"}, {f"{UP}.weight": ("I8", [64, 96])}, {}, "EETQ ("),
    "eetq without config": (
        None, {f"{UP}.weight": ("I8", [64, 96]), f"{UP}.weight_scales": ("F16", [96])}, {}, "EETQ ("
    ),
    "aqlm": ({"quant_method": "aqlm"}, {f"{UP}.codebooks": ("F16", [2, 2])}, {}, "AQLM ("),
    "aqlm without config": (None, {f"{UP}.codebooks": ("F16", [2, 2])}, {}, "AQLM ("),
    "torchao": ({"quant_method": "torchao", "quant_type": {}}, {}, {}, "torchao ("),
    "quanto": ({"quant_method": "quanto"}, {f"{UP}.weight._data": ("I8", [9])}, {}, "Quanto ("),
    "exl2": ({"quant_method": "exl2", "bits": 4}, {}, {}, "EXL2, 4 bits ("),
    "vptq": ({"quant_method": "vptq"}, {}, {}, "VPTQ ("),
    "higgs": ({"quant_method": "higgs", "bits": 4}, {}, {}, "HIGGS, 4 bits ("),
    "quark": ({"quant_method": "quark"}, {}, {}, "Quark ("),
    "of tomorrow": ({"quant_method": "zip7"}, {}, {}, "weights of quant_method 'zip7' ("),
    "no method": ({"weights": "small"}, {}, {}, "quantized weights of no known format ("),
}  # fmt: skip


def folder(path: Path, case: str) -> tuple[Path, str]:
    quantization, tensors, files, name = CASES[case]
    config = dict(CONFIG)
    if case == "mlx":
        config["quantization"] = quantization
    elif quantization is not None:
        config["quantization_config"] = quantization
    (path / "config.json").write_text(json.dumps(config))
    for file, content in files.items():
        (path / file).write_text(json.dumps(content))
    save(path / "model.safetensors", {**DENSE, **tensors})
    return path, name


@pytest.mark.parametrize("case", list(CASES))
def test_stages_say_the_name(tmp_path: Path, case: str) -> None:
    path, name = folder(tmp_path, case)
    for stage in (lambda: Checkpoint.open(path), lambda: find_model(str(path))):
        with pytest.raises(ModelError) as caught:
            stage()
        text = str(caught.value)
        assert f"{path} holds {name}" in text and "which is not read here; " in text
        assert "\n" not in text


@pytest.mark.parametrize("case", list(CASES))
def test_inspect_shows_it(tmp_path: Path, case: str) -> None:
    path, name = folder(tmp_path, case)
    found = inspect_artifact(path)
    assert found.kind == "other checkpoint" and found.problems == ()
    assert found.notes[0].startswith(name)
    assert found.weight_bytes > 0 and found.parameters is None
    run = CliRunner().invoke(app, ["inspect", str(path)])
    assert run.exit_code == 0, run.output


COMMANDS = {
    "quantize": "quantize {path} --out {out} --method rtn",
    "export": "export {path} --out {out}",
    "eval": "eval perplexity {path} --text {text}",
    "fit": "fit {path}",
}


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("case", ["fp8", "modelopt", "mlx without config", "nf4", "gptq"])
def test_commands_end_with_the_name(tmp_path: Path, case: str, command: str) -> None:
    pytest.importorskip("torch", reason="needs the [host] extra")
    (tmp_path / "model").mkdir()
    path, name = folder(tmp_path / "model", case)
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("Once upon a time. " * 50)
    arguments = COMMANDS[command].format(path=path, out=out, text=text).split()
    run = CliRunner().invoke(app, arguments)
    assert isinstance(run.exception, ModelError), (run.exception, run.output)
    assert f"holds {name}" in str(run.exception)
    assert not out.exists()


FILES = {
    "model.Q4_K_M.gguf": "GGUF (model.Q4_K_M.gguf)",
    "weights.00.npz": "MLX weights in .npz",
    "consolidated.00.pth": "the original files of Llama",
    "model.onnx": "an ONNX graph",
    "tf_model.h5": "TensorFlow weights",
    "rank0.engine": "engines of TensorRT-LLM",
}


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("file", list(FILES))
def test_folders_of_other_files(tmp_path: Path, file: str, with_config: bool) -> None:
    (tmp_path / file).write_bytes(b"GGUF" * 9)
    if with_config:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for stage in (lambda: Checkpoint.open(tmp_path), lambda: find_model(str(tmp_path))):
        with pytest.raises(ModelError) as caught:
            stage()
        assert f"holds {FILES[file]}" in str(caught.value)
    found = inspect_artifact(tmp_path)
    assert found.kind == "other checkpoint" and found.notes[0].startswith(FILES[file])
    assert found.weight_bytes == 0 and found.size > 0


def test_other_files_beside_safetensors_do_not_matter(tmp_path: Path) -> None:
    for file in FILES:
        (tmp_path / file).write_bytes(b"x")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save(tmp_path / "model.safetensors", DENSE)
    with pytest.raises(ModelError, match="is missing"):
        Checkpoint.open(tmp_path)


def test_an_adapter_is_told_to_be_merged(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save(tmp_path / "adapter_model.safetensors", {"base.q_proj.lora_A.weight": ("F16", [8, 64])})
    for config in (False, True):
        if config:
            (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        with pytest.raises(ModelError, match=r"holds a LoRA adapter .*merge it into its base"):
            Checkpoint.open(tmp_path)
        assert inspect_artifact(tmp_path).kind == "other checkpoint"


@pytest.mark.parametrize("damage", ["garbage", "", "cut", "pipe"])
@pytest.mark.parametrize("kind", ["adapter", "fp8", "gptq", "modelopt"])
def test_a_damaged_file_of_a_foreign_format_is_no_reason_to_copy_it_again(
    tmp_path: Path, kind: str, damage: str
) -> None:
    """What the folder is, and that no copy of it is read, comes before the damage."""
    weights, config = "model.safetensors", dict(CONFIG)
    if kind == "adapter":
        weights = "adapter_model.safetensors"
        (tmp_path / "adapter_config.json").write_text("{")
    elif kind == "fp8":
        config["quantization_config"] = {"quant_method": "fp8"}
    elif kind == "gptq":
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    else:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(modelopt(quant_algo="FP8")))
    (tmp_path / "config.json").write_text(json.dumps(config))
    save(tmp_path / weights, DENSE)
    whole = (tmp_path / weights).read_bytes()
    (tmp_path / weights).unlink()
    if damage == "pipe":
        os.mkfifo(tmp_path / weights)
    else:
        (tmp_path / weights).write_bytes(whole[:-1] if damage == "cut" else damage.encode())
    for stage in (lambda: Checkpoint.open(tmp_path), lambda: find_model(str(tmp_path))):
        with pytest.raises(ModelError, match=r"which is not read here; "):
            stage()
    inspection = inspect_artifact(tmp_path)
    assert inspection.kind == "other checkpoint"
    assert len(inspection.problems) == 1 and weights in inspection.problems[0]


def test_what_modelopt_leaves_unquantized_is_a_model(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "modelopt kv")
    (path / "hf_quant_config.json").write_text(json.dumps(modelopt(quant_algo=None)))
    with pytest.raises(ModelError, match="is missing"):  # the tensors alone are too few
        Checkpoint.open(path)


def test_every_quantizer_of_transformers_has_a_name() -> None:
    """But those that are read here."""
    quantizers = pytest.importorskip("transformers.quantizers.auto", reason="needs [host]")
    for method in quantizers.AUTO_QUANTIZATION_CONFIG_MAPPING:
        if method in ("awq", "compressed-tensors"):
            continue
        found = of_config({"quant_method": method.removesuffix("_4bit").removesuffix("_8bit")})
        assert found is not None and not found.name.startswith("weights of"), method
