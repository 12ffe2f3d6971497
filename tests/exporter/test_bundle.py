"""Bundles: what lies in them, memory while they are written, and everything that can go wrong."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import ArtifactError, ConfigError, ModelError, ResourceError
from awq_edge.exporter.bundle import export_checkpoint
from awq_edge.exporter.lowerings import require_lowering
from awq_edge.exporter.overrides import check_overrides
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import Recipe, load_recipe
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.session import SessionOptions

from .conftest import Export, parity_recipe
from .exports import kill_in_the_middle, peak_of_export
from .models import (
    MAX_POSITIONS,
    VOCAB,
    Reference,
    random_ids,
    save_quantized,
    save_random_model,
)


def test_files_and_manifest(llama_checkpoint: Path, tmp_path: Path, export: Export) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in llama_checkpoint.iterdir():
        os.link(file, source / file.name)
    (source / "tokenizer.json").write_text("{}")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    bundle = export(source, lm_head_bits=None, context=64)
    names = {path.name for path in bundle.path.iterdir()}
    copied = {"tokenizer.json", "chat_template.jinja", "generation_config.json"}
    written = {"config.json", "recipe.json", "model.onnx", "model.onnx.data"}
    assert names == copied | written | {"manifest.json"}
    assert set(bundle.manifest.files) == copied | written
    assert "quantization_config" not in json.loads((bundle.path / "config.json").read_text())
    manifest = Bundle.open(bundle.path).manifest  # checks every hash
    assert manifest == bundle.manifest
    assert (manifest.context, manifest.prefill_chunk) == (64, 32)
    assert (manifest.opset, manifest.runtime, manifest.model_type) == (21, "onnxruntime", "llama")
    assert (manifest.method, manifest.bits, manifest.group_size) == ("rtn", 4, 32)
    assert (manifest.lm_head_bits, manifest.scheme) == (8, "asymmetric")
    assert manifest.eos_token_ids == (5, 2)
    assert manifest.source["path"] == str(source)


def test_recipe_of_a_bundle_says_what_was_done(llama_checkpoint: Path, export: Export) -> None:
    """The recipe asks for awq in groups of 128; the checkpoint decided otherwise."""
    bundle = export(llama_checkpoint)
    recipe = Recipe.model_validate_json((bundle.path / "recipe.json").read_text())
    assert (recipe.quantization.method, recipe.quantization.group_size) == ("rtn", 32)
    assert recipe.export.context == MAX_POSITIONS


def test_weight_file_is_what_the_manifest_counts(llama_checkpoint: Path, export: Export) -> None:
    bundle = export(llama_checkpoint, lm_head_bits=8)
    model = onnx.load(bundle.path / "model.onnx", load_external_data=False)
    sizes, spans = {}, []
    for proto in model.graph.initializer:
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in proto.external_data}
            assert place["location"] == "model.onnx.data"
            sizes[proto.name] = int(place["length"])
            spans.append((int(place["offset"]), int(place["offset"]) + int(place["length"])))
            assert spans[-1][0] % 4096 == 0
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert spans[-1][1] == (bundle.path / "model.onnx.data").stat().st_size
    parts = bundle.manifest.part_bytes
    assert sum(parts.values()) == sum(sizes.values())
    # By hand: embedding float16; lm_head 8-bit codes, float32 scales of groups of 32, final norm.
    assert parts["embedding"] == VOCAB * 64 * 2
    assert parts["lm_head"] == VOCAB * 64 + VOCAB * 2 * 4 + 64 * 4
    assert parts["tables"] == 2 * MAX_POSITIONS * 16 * 4
    rows = 64 * 2 + 2 * 16 * 4
    assert bundle.manifest.bytes_per_token == parts["blocks"] + parts["lm_head"] + rows


def test_ports_are_the_graphs(llama: Path, export: Export) -> None:
    bundle = export(llama)
    model = onnx.load(bundle.path / "model.onnx", load_external_data=False)
    assert (model.opset_import[0].version, model.ir_version) == (21, 10)
    inputs = [value.name for value in model.graph.input]
    assert inputs == [port.name for port in bundle.manifest.inputs]
    ports = {port.name: port for port in bundle.manifest.inputs}
    assert ports["input_ids"].dtype == "int64"
    assert ports["past.1.value"].shape == ("batch", 2, "context", 32)
    assert ports["past.1.value"].dtype == "float32"


def test_an_export_repeats_to_the_byte(llama_checkpoint: Path, export: Export) -> None:
    first = export(llama_checkpoint, lm_head_bits=8).manifest.files
    assert export(llama_checkpoint, lm_head_bits=8).manifest.files == first


def test_unquantized_keeps_lm_head_unless_asked(llama: Path, export: Export) -> None:
    assert export(llama, lm_head_bits=None).manifest.lm_head_bits == 16
    manifest = export(llama, lm_head_bits=8).manifest
    assert (manifest.method, manifest.bits, manifest.lm_head_bits) == ("none", 32, 8)


def test_an_lm_head_that_its_groups_do_not_fit(tmp_path: Path, export: Export) -> None:
    source = save_random_model(tmp_path / "model", "llama", hidden_size=48)
    assert export(source, lm_head_bits=8).manifest.lm_head_bits == 16


def test_context_is_clipped_or_refused(llama: Path, export: Export) -> None:
    recipe = load_recipe("cpu")
    assert recipe.export.context > MAX_POSITIONS
    assert export(llama, recipe).manifest.context == MAX_POSITIONS
    assert export(llama, recipe, context=10).manifest.context == 10
    with pytest.raises(ConfigError, match=r"--context 97 is beyond the 96 positions"):
        export(llama, context=97)


def test_an_unknown_runtime_is_refused_with_the_way_out(llama: Path, export: Export) -> None:
    message = r"runtime 'openvino' yet; .*--runtime onnxruntime"
    with pytest.raises(ConfigError, match=message):
        require_lowering("openvino")
    with pytest.raises(ConfigError, match=message):
        load_recipe("cpu", runtime="openvino")


def test_bfloat16_is_refused_by_name(llama: Path, export: Export) -> None:
    recipe = parity_recipe(**{"runtime.activation_dtype": "bfloat16"})
    with pytest.raises(ConfigError, match=r"float16 or float32 activations.*has bfloat16"):
        export(llama, recipe)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bits": 3}, r"--bits 3 contradicts .*, which is quantized with bits 4"),
        ({"bits": 4, "group_size": 128}, r"--group-size 128 contradicts .* group size 32"),
        ({"scheme": "symmetric"}, r"--scheme symmetric contradicts .* scheme asymmetric"),
        ({"method": "none"}, r"--method none contradicts .* method rtn"),
        ({"samples": 3}, r"--samples 3: .* is quantized already"),
        ({"propagate_error": False}, r"--no-propagate-error: .* is quantized already"),
    ],
)
def test_overrides_that_a_checkpoint_contradicts(
    overrides: dict[str, Any], message: str, llama_checkpoint: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_overrides(Checkpoint.open(llama_checkpoint), load_recipe("cpu", **overrides), None)
    check_overrides(
        Checkpoint.open(llama_checkpoint), load_recipe("cpu"), None
    )  # nobody asked for its values


def test_a_calibration_comes_too_late_for_a_checkpoint(llama_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"--calibration text\.txt: .* is quantized already"):
        check_overrides(Checkpoint.open(llama_checkpoint), load_recipe("cpu"), "text.txt")


def test_overrides_that_agree(llama_checkpoint: Path, llama: Path) -> None:
    same = load_recipe(method="rtn", bits=4, group_size=32, scheme=None, seed=None)
    check_overrides(Checkpoint.open(llama_checkpoint), same, None)
    check_overrides(Checkpoint.open(llama), load_recipe(bits=3), None)


def test_an_existing_bundle_is_kept(llama: Path, export: Export) -> None:
    bundle = export(llama)
    with pytest.raises(ConfigError, match=r"exists; choose another --out or give --overwrite"):
        export(llama, overwrite=False)
    Bundle.open(bundle.path)


def test_a_truncated_bundle_is_refused(llama: Path, export: Export) -> None:
    bundle = export(llama)
    path = bundle.path / "model.onnx.data"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data has \d+ bytes, its manifest says"):
        Bundle.open(bundle.path)


def test_a_changed_byte_is_refused(llama: Path, export: Export) -> None:
    bundle = export(llama)
    with open(bundle.path / "model.onnx.data", "r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data was changed: sha256"):
        Bundle.open(bundle.path)


def test_a_truncated_checkpoint_is_named(llama_checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((llama_checkpoint / "config.json").read_bytes())
    data = (llama_checkpoint / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(ModelError, match="is not a valid safetensors file"):
        export_checkpoint(source, tmp_path / "out", parity_recipe(), model_name="x")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(reason="there is no mount command")
    if mounted.returncode:
        pytest.skip(reason=f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def three_megabytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of more than 2 MB."""
    folder = tmp_path_factory.mktemp("large")
    return save_random_model(folder, "llama", vocab_size=2000, hidden_size=256)


def test_disk_space_is_checked_before_the_work(three_megabytes: Path, small_disk: Path) -> None:
    seen: list[str] = []
    with pytest.raises(ResourceError, match=r"the bundle of large needs \d\.\d MB in .* are free"):
        export_checkpoint(
            three_megabytes,
            small_disk / "out",
            parity_recipe(),
            model_name="large",
            observer=lambda done, total, what: seen.append(what),
        )
    assert seen == [] and list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(
    three_megabytes: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may take the space after the check."""
    monkeypatch.setattr("awq_edge.exporter.bundle.require_disk", lambda *arguments: None)
    with pytest.raises(ResourceError, match=r"the disk of .*small filled up while out was written"):
        export_checkpoint(three_megabytes, small_disk / "out", parity_recipe(), model_name="large")
    assert list(small_disk.iterdir()) == []


def test_a_killed_export_leaves_nothing_under_the_final_name(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    kill_in_the_middle(llama, out, "cpu")
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1 and left[0].startswith(".bundle.partial-")
    export_checkpoint(llama, out, parity_recipe(), model_name="x")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    Bundle.open(out)


def test_peak_memory_does_not_grow_with_layers(tmp_path: Path) -> None:
    """Six more layers of 3.5 MB: the peak grows by their nodes, not by their weights."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64}
    peaks, weights = [], []
    for layers in (2, 8):
        source = save_random_model(
            tmp_path / str(layers), "llama", num_hidden_layers=layers, **sizes
        )
        entries = Checkpoint.open(source).files.entries.values()
        weights.append(sum(entry.size for entry in entries))
        peaks.append(peak_of_export(source, tmp_path / "bundle", parity_recipe()))
    assert weights[1] - weights[0] > 20_000_000
    assert peaks[1] - peaks[0] < 1_500_000
    assert peaks[1] < 8_000_000  # the largest tensor is 1 MB, read and transposed


def test_a_bundle_without_tokenizer_opens_as_a_session(llama: Path, export: Export) -> None:
    """The graph needs none; `awq-edge run` names the file that is missing."""
    with open_session(export(llama), SessionOptions(threads=1)) as session:  # type: ignore[attr-defined]
        assert session.prefill(random_ids(3)).shape == (VOCAB,)


def test_an_lm_head_that_the_checkpoint_has_quantized(
    llama: Path, tmp_path: Path, export: Export
) -> None:
    """Some tools quantize it like the rest: it stays as it is."""
    checkpoint = save_quantized(llama, tmp_path / "checkpoint", lm_head=True)
    bundle = export(checkpoint, lm_head_bits=None)
    assert bundle.manifest.lm_head_bits == 4
    ids = random_ids(12)
    with open_session(bundle, SessionOptions(threads=1)) as session:  # type: ignore[attr-defined]
        found = session.logits(ids, range(12))
    np.testing.assert_allclose(found, Reference(checkpoint).logits(ids), atol=1e-4)
    with pytest.raises(ConfigError, match=r"--lm-head-bits 8 contradicts .*lm_head is quantized"):
        export(checkpoint, lm_head_bits=8)
