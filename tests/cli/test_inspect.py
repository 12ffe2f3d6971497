"""`awq-edge inspect`: every kind of directory, whole, damaged and foreign."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import awq_edge
from awq_edge.artifacts.directories import Bundle, hash_file
from awq_edge.inspect.artifact import inspect_artifact
from awq_edge.inspect.schema import Inspection
from awq_edge.recipe.recipes import load_recipe
from awq_edge.runtime.memory import kv_cache_bytes

from .conftest import Command, Outcome


@pytest.fixture(scope="module")
def checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AutoAWQ checkpoint with a linear that does not fit: 96 input channels, groups of 64."""
    out = tmp_path_factory.mktemp("inspect") / "checkpoint"
    return awq_edge.quantize(tiny_llama, out, load_recipe(method="rtn", group_size=64)).path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return awq_edge.export(checkpoint, tmp_path_factory.mktemp("inspect") / "bundle").path


def copied(source: Path, out: Path, config: dict[str, Any] | None = None) -> Path:
    """A directory to damage. config: keys that replace those of config.json."""
    shutil.copytree(source, out)
    if config is not None:
        path = out / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return out


def as_json(outcome: Outcome) -> Inspection:
    return Inspection.model_validate_json(outcome.out)


def test_a_model(awq_edge_command: Command, tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    outcome = awq_edge_command("inspect", tiny_llama, "--json", "-")
    assert outcome.code == 0
    found = as_json(outcome)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert (found.kind, found.model_type) == ("model", "llama")
    assert found.parameters == sum(sizes.values())
    parts = {part.name: part for part in found.parts}
    assert set(parts) == {"embedding", "blocks", "norms", "lm_head"}
    assert parts["lm_head"].parameters == sizes["lm_head.weight"]
    assert parts["norms"].parameters == sum(n for name, n in sizes.items() if "norm" in name)
    assert sum(part.parameters or 0 for part in found.parts) == found.parameters
    assert sum(part.bytes for part in found.parts) == found.weight_bytes == 4 * found.parameters
    assert found.bits_per_weight == 32 and found.quantized_bits_per_weight is None
    # Everything but the embedding, of which one row of 64 float32.
    rest = found.weight_bytes - parts["embedding"].bytes
    assert found.weight_bytes_per_token == rest + 64 * 4
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2  # k and v, layers, heads, size, 16 bits
    assert found.dtypes["F32"].bytes == found.weight_bytes
    assert (found.quantization, found.bundle, found.unquantized) == (None, None, {})
    assert found.size == sum(file.stat().st_size for file in tiny_llama.iterdir())
    assert found.problems == found.notes == ()


def test_an_autoawq_checkpoint(awq_edge_command: Command, checkpoint: Path) -> None:
    found = as_json(awq_edge_command("inspect", checkpoint, "--json", "-"))
    assert found.kind == "autoawq checkpoint"
    assert found.quantization is not None
    assert found.quantization.model_dump() == {
        "method": "rtn",
        "bits": 4,
        "group_size": 64,
        "scheme": "asymmetric",
    }
    parts = {part.name: part for part in found.parts}
    left = 2 * 64 * 96  # down_proj of two blocks
    assert parts["blocks"].formats == {
        "4-bit, group 64, asymmetric": (parts["blocks"].parameters or 0) - left,
        "F16": left,
    }
    assert found.quantized_bits_per_weight == pytest.approx(4 + (16 + 4) / 64)
    entries = load_file(checkpoint / "model.safetensors")
    assert sum(part.bytes for part in found.parts) == sum(a.nbytes for a in entries.values())
    assert found.bits_per_weight == pytest.approx(8 * found.weight_bytes / (found.parameters or 0))
    assert found.unquantized == {
        f"model.layers.{layer}.mlp.down_proj": "in_features 96 is not a multiple of group_size 64"
        for layer in range(2)
    }
    report = json.loads((checkpoint / "quantization_report.json").read_text())
    assert found.provenance.model_name == "tiny-llama"
    assert found.provenance.versions == report["versions"]
    assert found.provenance.commit == report["commit"] and found.provenance.time == report["time"]


def test_a_checkpoint_without_a_report(checkpoint: Path, tmp_path: Path) -> None:
    """As AutoAWQ itself writes it."""
    path = copied(checkpoint, tmp_path / "checkpoint")
    (path / "quantization_report.json").unlink()
    found = inspect_artifact(path)
    assert set(found.unquantized.values()) == {"not quantized in the checkpoint"}
    assert found.provenance.model_name is None
    (path / "quantization_report.json").write_text('{"format": "else"}')
    (note,) = inspect_artifact(path).notes
    assert note.startswith("quantization_report.json is not a valid report (format: ")


def test_a_tied_embedding_is_read_whole(tiny_llama: Path, tmp_path: Path) -> None:
    path = copied(tiny_llama, tmp_path / "tied", {"tie_word_embeddings": True})
    tensors = load_file(path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, path / "model.safetensors")
    found = inspect_artifact(path)
    embedding = next(part for part in found.parts if part.name == "embedding")
    assert embedding.bytes_per_token == embedding.bytes + 64 * 4
    assert found.weight_bytes_per_token == found.weight_bytes + 64 * 4


def test_a_bundle(awq_edge_command: Command, bundle: Path, checkpoint: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    found = as_json(awq_edge_command("inspect", bundle, "--json", "-"))
    assert (found.kind, found.model_type) == ("bundle", "llama")
    assert {part.name: part.bytes for part in found.parts} == manifest.part_bytes
    # The notion of the run report's GB/s.
    assert found.weight_bytes_per_token == manifest.bytes_per_token
    assert sum(part.bytes_per_token for part in found.parts) == manifest.bytes_per_token
    parts = {part.name: part for part in found.parts}
    for name in ("blocks", "lm_head"):
        assert parts[name].bytes_per_token == parts[name].bytes
    assert parts["embedding"].bytes_per_token == 64 * 2
    assert list(parts["blocks"].formats) == ["4-bit, group 64, asymmetric"]
    assert list(parts["lm_head"].formats) == ["8-bit"]
    assert found.kv_bytes_per_token == kv_cache_bytes(manifest, 1)
    assert found.parameters == inspect_artifact(checkpoint).parameters
    assert sum(part.parameters or 0 for part in found.parts) == found.parameters
    assert found.unquantized == manifest.unquantized
    assert found.bundle is not None and found.bundle.runtime == "onnxruntime"
    assert found.provenance.source == manifest.source
    files = {file.name: file for file in found.files}
    assert set(files) == {path.name for path in bundle.iterdir()}
    for name, entry in manifest.files.items():
        assert (files[name].size, files[name].sha256) == (entry.size, entry.sha256)
        assert files[name].status == "unchecked"
    # The report of the quantization travels with the weights.
    for name in ("quantization_report.json", "quantization_report.html"):
        assert (bundle / name).read_bytes() == (checkpoint / name).read_bytes()
        assert name in manifest.files


def test_tables(awq_edge_command: Command, bundle: Path, checkpoint: Path) -> None:
    outcome = awq_edge_command("inspect", checkpoint)
    assert (outcome.code, outcome.err) == (0, "")
    found = inspect_artifact(checkpoint)
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"autoawq checkpoint {checkpoint}: tiny-llama, llama, ")
    rows = {line.split()[0]: line for line in lines if line}
    for part in found.parts:
        assert f"{part.parameters:,}" in rows[part.name]
        assert f" {part.bits_per_weight:.2f} " in rows[part.name]
    assert "2 linears: in_features 96 is not a multiple of group_size 64" in outcome.out
    assert f"{found.kv_bytes_per_token:,} bytes a token (16 bits)" in outcome.out
    assert "sha256" not in outcome.out
    outcome = awq_edge_command("inspect", bundle, "--hashes")
    for entry in Bundle.open(bundle).manifest.files.values():
        assert entry.sha256 in outcome.out


def test_hashes_of_a_checkpoint(awq_edge_command: Command, checkpoint: Path) -> None:
    found = as_json(awq_edge_command("inspect", checkpoint, "--hashes", "--json", "-"))
    assert len(found.files) == len(list(checkpoint.iterdir()))
    for file in found.files:
        assert file.sha256 == hash_file(checkpoint / file.name).sha256


def test_a_whole_bundle_is_verified(awq_edge_command: Command, bundle: Path) -> None:
    found = as_json(awq_edge_command("inspect", bundle, "--verify", "--json", "-"))
    status = {file.name: file.status for file in found.files}
    assert status.pop("manifest.json") == "unchecked"
    assert set(status.values()) == {"verified"} and found.problems == ()


def test_verify_reads_what_was_verified_before(
    awq_edge_command: Command, bundle: Path, tmp_path: Path
) -> None:
    """A changed byte with size and times as they were; loading a bundle might trust those."""
    path = copied(bundle, tmp_path / "bundle")
    Bundle.open(path)
    weights = path / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    (path / "tokenizer.json").write_text("{}")
    assert awq_edge_command("inspect", path).code == 2  # the tokenizer's size
    outcome = awq_edge_command("inspect", path, "--verify")
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert "model.onnx.data was changed: sha256 " in line
    assert "tokenizer.json has 2 bytes, its manifest says " in line
    assert "config.json" not in line
    status = {line.split()[0]: line for line in outcome.out.splitlines() if line}
    assert " changed " in status["model.onnx.data"]
    assert " resized " in status["tokenizer.json"] and " verified " in status["config.json"]


def test_missing_and_foreign_files_of_a_bundle(
    awq_edge_command: Command, bundle: Path, tmp_path: Path
) -> None:
    path = copied(bundle, tmp_path / "bundle")
    (path / "model.onnx").unlink()
    (path / "notes.txt").write_text("mine")
    engine = path / "engines" / "tensorrt-10.16-SM87" / "model.engine"
    engine.parent.mkdir(parents=True)
    engine.write_bytes(b"engine")
    outcome = awq_edge_command("inspect", path, "--json", "-")
    assert outcome.code == 2 and outcome.err.splitlines()[-1].startswith("error: ")
    assert "model.onnx is missing" in outcome.err.splitlines()[-1]
    status = {file.name: file.status for file in as_json(outcome).files}
    assert (status["model.onnx"], status["notes.txt"]) == ("missing", "unlisted")
    assert status["engines/tensorrt-10.16-SM87/model.engine"] == "engine"


def test_a_damaged_manifest(awq_edge_command: Command, bundle: Path, tmp_path: Path) -> None:
    path = copied(bundle, tmp_path / "bundle")
    (path / "manifest.json").write_text("{}")
    assert "is not a valid bundle manifest" in awq_edge_command("inspect", path).refused()


def test_a_bundle_of_an_architecture_from_the_future(bundle: Path, tmp_path: Path) -> None:
    path = copied(bundle, tmp_path / "bundle", {"model_type": "llama9"})
    found = inspect_artifact(path)
    assert found.parameters is None and found.bits_per_weight is None
    assert "model_type 'llama9' is not supported" in found.notes[0]
    assert found.weight_bytes == sum(Bundle.open(path, verify=False).manifest.part_bytes.values())


def test_an_unknown_architecture_is_listed_by_dtype(
    awq_edge_command: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    path = copied(tiny_llama, tmp_path / "model", {"model_type": "llama9"})
    outcome = awq_edge_command("inspect", path)
    assert outcome.code == 0
    assert "note: parts are not known: config.json: model_type 'llama9'" in outcome.out
    found, known = inspect_artifact(path), inspect_artifact(tiny_llama)
    assert (found.parts, found.architecture) == ((), None)
    assert (found.dtypes, found.parameters) == (known.dtypes, known.parameters)


def test_another_quantization_is_listed_by_dtype(checkpoint: Path, tmp_path: Path) -> None:
    path = copied(
        checkpoint, tmp_path / "gptq", {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    )
    found = inspect_artifact(path)
    assert found.kind == "other checkpoint" and found.problems == ()
    assert found.notes[0].startswith("GPTQ, 4 bits (quant_method 'gptq'): not read here")
    assert set(found.dtypes) == {"I32", "F16"} and found.parameters is None
    size = sum(array.nbytes for array in load_file(path / "model.safetensors").values())
    assert sum(dtype.bytes for dtype in found.dtypes.values()) == found.weight_bytes == size


def test_a_checkpoint_that_lacks_a_weight(
    awq_edge_command: Command, checkpoint: Path, tmp_path: Path
) -> None:
    path = copied(checkpoint, tmp_path / "checkpoint")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, path / "model.safetensors")
    outcome = awq_edge_command("inspect", path)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert "model.layers.1.mlp.up_proj.scales" in line and "missing" in line
    assert "I32" in outcome.out  # what is there is listed all the same


def test_a_truncated_checkpoint(
    awq_edge_command: Command, checkpoint: Path, tmp_path: Path
) -> None:
    path = copied(checkpoint, tmp_path / "checkpoint")
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-10])
    line = awq_edge_command("inspect", path).refused()
    assert "model.safetensors is not a valid safetensors file" in line


def test_what_is_neither(
    awq_edge_command: Command, checkpoint: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for target, message in (
        ("empty", "is neither a bundle (it has no manifest.json) nor a checkpoint or model"),
        ("file", "is a file; give the directory"),
        ("none", "does not exist; give the directory"),
    ):
        assert message in awq_edge_command("inspect", tmp_path / target).refused()
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert "no *.safetensors files" in awq_edge_command("inspect", tmp_path / "empty").refused()
    line = awq_edge_command("inspect", checkpoint, "--verify").refused()
    assert "--verify: " in line and "no manifest.json to compare with" in line


def test_the_page_is_made_again(
    awq_edge_command: Command, checkpoint: Path, bundle: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    for source in (checkpoint, bundle):
        page = tmp_path / f"{source.name}.html"
        outcome = awq_edge_command("inspect", source, "--html", page)
        assert outcome.code == 0 and f"written: {page}" in outcome.out
        assert page.read_bytes() == (checkpoint / "quantization_report.html").read_bytes()
    outcome = awq_edge_command("inspect", tiny_llama, "--html", tmp_path / "none.html")
    assert outcome.code == 2
    assert "has no quantization_report.json" in outcome.err
    outcome = awq_edge_command("inspect", checkpoint, "--html", tmp_path / "no" / "x.html")
    assert outcome.code == 2 and "cannot be written" in outcome.err
    assert not (tmp_path / "none.html").exists()


def test_names_with_brackets_are_printed_as_they_are(
    awq_edge_command: Command, bundle: Path, tmp_path: Path
) -> None:
    path = copied(bundle, tmp_path / "bundle")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"model_name": "a/[bold]b"}))
    assert "a/[bold]b" in awq_edge_command("inspect", path).out


def compressed(out: Path, checkpoint: Path) -> Path:
    """The checkpoint in compressed-tensors' `pack-quantized`, symmetric: names and shapes of its
    public specification, codes that nobody reads here."""
    path = copied(checkpoint, out)
    stored, tensors = load_file(path / "model.safetensors"), {}
    for name, array in stored.items():
        linear, _, kind = name.rpartition(".")
        if kind == "qweight":
            rows = array.shape[0], array.shape[1] * 8
            tensors[f"{linear}.weight_packed"] = np.zeros((rows[1], rows[0] // 8), np.int32)
            tensors[f"{linear}.weight_shape"] = np.array([rows[1], rows[0]], np.int64)
        elif kind == "scales":
            tensors[f"{linear}.weight_scale"] = np.ascontiguousarray(array.T)
        elif kind != "qzeros":
            tensors[name] = array
    save_file(tensors, path / "model.safetensors")
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    group = {"targets": ["Linear"], "weights": weights | {"group_size": 64, "dynamic": False}}
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"],
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_compressed_tensors_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    path = compressed(tmp_path / "compressed", checkpoint)
    found = inspect_artifact(path)
    assert found.kind == "compressed-tensors checkpoint"
    tensors = load_file(path / "model.safetensors")
    assert found.weight_bytes == sum(array.nbytes for array in tensors.values())
    assert found.dtypes["I32"].tensors == 12 and found.dtypes["I64"].tensors == 12
    assert found.problems == ()
    (blocks,) = (part for part in found.parts if part.name == "blocks")
    assert "4-bit, group 64, symmetric" in blocks.formats
    assert found.quantized_bits_per_weight == pytest.approx(4 + 16 / 64, rel=0.02)


def test_the_parts_of_a_checkpoint_are_all_of_its_bytes(checkpoint: Path) -> None:
    found = inspect_artifact(checkpoint)
    assert sum(part.bytes for part in found.parts) == found.weight_bytes
    shapes = {
        name: array.shape for name, array in load_file(checkpoint / "model.safetensors").items()
    }
    embedding = next(part for part in found.parts if part.name == "embedding")
    assert embedding.parameters == math.prod(shapes["model.embed_tokens.weight"])
