"""Vision-language models: images are in the calibration, and towers come through as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from awq_edge.errors import ModelError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.files import ModelFiles
from awq_edge.quantizer.blocks.runner import BlockRunner, relative_change
from awq_edge.quantizer.calibration.text import CalibrationSet
from tests.arch_configs import in_memory

from .conftest import build_model, load_block, save_model
from .test_checkpoint_out import restore
from .vision_models import VISION, drawn, image_arguments, loaded_whole, quantize

CPU = torch.device("cpu")
# float32, the same operations in batches of another size.
EQUAL = 1e-5


def hidden_of_whole_model(path: Path, calibration: CalibrationSet) -> list[torch.Tensor]:
    """Input of the first block and outputs of all, sample by sample through transformers alone."""
    whole, decoder = loaded_whole(path), Checkpoint.open(path).decoder
    layers = whole.get_submodule(in_memory(decoder, decoder.architecture.layers))
    seen: list[list[torch.Tensor]] = [[] for _ in range(decoder.num_layers + 1)]
    for index, layer in enumerate(layers):
        if index == 0:
            layer.register_forward_pre_hook(lambda _, inputs: seen[0].append(inputs[0]))
        layer.register_forward_hook(
            lambda _, inputs, output, index=index: seen[index + 1].append(
                output[0] if isinstance(output, tuple) else output
            )
        )
    for row, inputs in zip(calibration.ids, calibration.images, strict=True):
        arguments = image_arguments(torch.from_numpy(row)[None], inputs)
        with torch.no_grad():
            whole(**arguments, use_cache=False)
    return [torch.cat(each) for each in seen]


def check_blocks(path: Path, calibration: CalibrationSet) -> None:
    expected = hidden_of_whole_model(path, calibration)
    checkpoint = Checkpoint.open(path)
    runner = BlockRunner(checkpoint, CPU)
    hidden = runner.embed(torch.from_numpy(calibration.ids), 2, calibration.images)
    assert relative_change(expected[0], hidden) < EQUAL
    for layer in range(len(expected) - 1):
        with runner.block(layer, load_block(checkpoint, layer)) as block:
            parts = enumerate(torch.split(hidden, 2))
            hidden = torch.cat([block.run(part, batch) for batch, part in parts])
        assert relative_change(expected[layer + 1], hidden) < EQUAL, layer


def test_blocks_equal_the_whole_model_on_images(
    vision_model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """Images of several sizes, batches with and without images, and a last one that is smaller."""
    calibration = drawn(vision_model, calibration_text)
    assert [inputs is not None for inputs in calibration.images] == [True, False] * 2 + [True]
    check_blocks(vision_model, calibration)
    only_text = CalibrationSet(calibration.ids[1::2], "text", 0, (None, None))
    check_blocks(vision_model, only_text)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_model_type": "mistral", "sliding_window": 16},
        {
            "text_model_type": "qwen2",
            "vision_feature_select_strategy": "full",
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 7,
                "vision_use_head": False,
            },
        },
        {"vision_feature_select_strategy": "full"},
    ],
)
def test_variants_of_llava(changes: dict[str, Any], calibration_text: Path, tmp_path: Path) -> None:
    path = save_model(build_model("llava", **changes), tmp_path / "model")
    check_blocks(path, drawn(path, calibration_text, samples=3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", VISION)
def test_towers_keep_their_bytes(
    name: str, dtype: torch.dtype, calibration_text: Path, tmp_path: Path
) -> None:
    path = save_model(build_model(name).to(dtype), tmp_path / "model")
    checkpoint = quantize(path, tmp_path / "out", calibration_text)
    before, after = ModelFiles(path), ModelFiles(checkpoint.path)
    vision = Checkpoint.open(path).decoder.architecture.vision
    assert vision is not None
    kept = [tensor for tensor in before.entries if vision.keeps(tensor)]
    assert len(kept) > 20
    for tensor in kept:
        ours, theirs = after.read_bits(tensor), before.read_bits(tensor)
        assert ours[1] == theirs[1] and ours[0].tobytes() == theirs[0].tobytes(), tensor
    assert {n for n in after.entries if vision.keeps(n)} == set(kept)
    config = json.loads((checkpoint.path / "config.json").read_text())
    dtypes = {config[key]["dtype"] for key in ("text_config", "vision_config")}
    assert dtypes == {config["dtype"]} == {str(dtype).removeprefix("torch.")}
    for file in ("preprocessor_config.json", "tokenizer.json"):
        assert (checkpoint.path / file).read_bytes() == (path / file).read_bytes()


@pytest.mark.parametrize("method", ["rtn", "awq", "awq+gptq"])
def test_logits_with_an_image_are_close(
    vision_model: Path, calibration_text: Path, tmp_path: Path, method: str
) -> None:
    checkpoint = quantize(vision_model, tmp_path / "out", calibration_text, method=method)
    if method == "rtn":
        assert checkpoint.report.calibration is None
    else:
        assert checkpoint.report.calibration is not None
        assert "drawn pictures" in checkpoint.report.calibration.source
        for block in checkpoint.report.blocks:
            assert block.fold_change is not None and block.fold_change < 1e-5
    sample = drawn(vision_model, calibration_text, samples=1)
    ids = torch.from_numpy(sample.ids)
    arguments = image_arguments(ids, sample.images[0])
    with torch.no_grad():
        expected = loaded_whole(vision_model)(**arguments).logits
        found = restore(checkpoint.path)(**arguments).logits
    error = float((found - expected).norm() / expected.norm())
    assert 0.001 < error < 0.4
    assert checkpoint.report.summary.unquantized_linears == 0


def test_transformers_converts_the_decoder_alone(
    vision_model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """By its own reading of modules_to_not_convert."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    checkpoint = quantize(vision_model, tmp_path / "out", calibration_text, method="rtn")
    settings = json.loads((checkpoint.path / "config.json").read_text())["quantization_config"]
    skipped = settings["modules_to_not_convert"]
    decoder = Checkpoint.open(vision_model).decoder
    linears = {
        in_memory(decoder, f"{decoder.layer_prefix(layer)}.{linear.name}")
        for layer in range(decoder.num_layers)
        for linear in decoder.linears(layer)
    }
    whole = loaded_whole(vision_model)
    modules = [n for n, m in whole.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(modules) > len(linears) + 5
    assert {name for name in modules if should_convert_module(name, skipped)} == linears


def test_compressed_tensors_converts_the_decoder_alone(
    vision_model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """By the package's own reading of targets and ignore; the output layer in 8 bits as well."""
    match = pytest.importorskip("compressed_tensors.utils.match")

    checkpoint = quantize(
        vision_model, tmp_path / "out", calibration_text, method="rtn", bits=3, lm_head_bits=8
    )
    opened = Checkpoint.open(checkpoint.path)
    settings = opened.files.config["quantization_config"]
    targets = [t for group in settings["config_groups"].values() for t in group["targets"]]
    decoder = opened.decoder
    linears = {
        in_memory(decoder, f"{decoder.layer_prefix(layer)}.{linear.name}")
        for layer in range(decoder.num_layers)
        for linear in decoder.linears(layer)
    }
    found = match.match_named_modules(loaded_whole(vision_model), targets, settings["ignore"])
    assert {name for name, _ in found} == linears | {"lm_head"}
    for name in opened.kept_names:
        assert opened.files.entries[name].dtype == "F16"


def renamed(source: Path, out: Path, rename: dict[str, str]) -> Path:
    shutil.copytree(source, out)
    tensors = load_file(source / "model.safetensors")
    found = {}
    for name, tensor in tensors.items():
        for old, new in rename.items():
            name = name.replace(old, new)
        found[name] = tensor
    assert set(found) != set(tensors)
    save_file(found, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_names_of_both_generations_are_the_same_model(
    calibration_text: Path, tmp_path: Path
) -> None:
    for name in VISION:
        whole = build_model(name)
        classic = save_model(whole, tmp_path / name / "classic")
        new = save_model(whole, tmp_path / name / "new", save_original_format=False)
        assert any(n.startswith("model.language_model.") for n in ModelFiles(new).entries)
        assert not any(n.startswith("model.language_model.") for n in ModelFiles(classic).entries)
        out = [quantize(p, p.parent / f"{p.name}-out", calibration_text) for p in (classic, new)]
        written = [(c.path / "model.safetensors").read_bytes() for c in out]
        assert written[0] == written[1]


def test_a_level_of_names_that_older_files_of_clip_have(
    llava: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """As llava-1.5-7b-hf is on the hub, with the buffer that still older files carry."""
    old = renamed(llava, tmp_path / "old", {"vision_tower.": "vision_tower.vision_model."})
    tensors = load_file(old / "model.safetensors")
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    calibration = drawn(llava, calibration_text, samples=2)
    ids = torch.from_numpy(calibration.ids)
    hidden = [
        BlockRunner(Checkpoint.open(path), CPU).embed(ids, 2, calibration.images)
        for path in (llava, old)
    ]
    assert torch.equal(hidden[0], hidden[1])
    checkpoint = quantize(old, tmp_path / "out", calibration_text)
    restore(checkpoint.path)  # transformers accepts every name


def test_flat_configurations_of_qwen2_vl(calibration_text: Path, tmp_path: Path) -> None:
    """As the hub has them: the decoder's keys beside vision_config, rope_scaling of type mrope."""
    nested = save_model(build_model("qwen2_vl"), tmp_path / "nested")
    flat = tmp_path / "flat"
    shutil.copytree(nested, flat)
    config = json.loads((nested / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    text["rope_theta"] = rope["rope_theta"]
    del text["layer_types"], text["model_type"]
    (flat / "config.json").write_text(json.dumps(text | config))
    assert Checkpoint.open(flat).decoder == Checkpoint.open(nested).decoder
    check_blocks(flat, drawn(flat, calibration_text, samples=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_tower.embeddings.": None}, r"weights of 'vision_tower' are missing: .*embed"),
        ({"multi_modal_projector.": None}, r"the weights of 'multi_modal_projector' are missing"),
        ({"audio_tower.weight": torch.zeros(3)}, r"unexpected weight 'audio_tower.weight'"),
        (
            {"vision_tower.more.weight": torch.zeros(3)},
            r"unexpected weight 'vision_tower.more.weight' for transformers' class Llava",
        ),
        (
            {"multi_modal_projector.linear_1.bias": torch.zeros(3)},
            r"'multi_modal_projector.linear_1.bias' has shape \[3\], config.json implies \[64\]",
        ),
        (
            {"multi_modal_projector.linear_1.bias": torch.full((64,), float("nan"))},
            r"'multi_modal_projector.linear_1.bias' has NaN or inf",
        ),
        (
            {"model.vision_tower.post_layernorm.weight": torch.ones(32)},
            r"'vision_tower.post_layernorm.weight' is there twice",
        ),
    ],
)
def test_weights_that_do_not_belong_are_named(
    llava: Path,
    change: dict[str, torch.Tensor | None],
    message: str,
    calibration_text: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "model"
    shutil.copytree(llava, path)
    tensors = load_file(llava / "model.safetensors")
    for name, tensor in change.items():
        if tensor is None:
            tensors = {n: t for n, t in tensors.items() if not n.startswith(name)}
        else:
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        quantize(path, tmp_path / "out", calibration_text)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_an_interrupted_run_ends_with_the_same_bytes(
    vision_model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    whole = quantize(vision_model, tmp_path / "whole", calibration_text)

    def stop(done: int, total: int, what: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        quantize(vision_model, out, calibration_text, observer=stop)
    seen: list[str] = []
    again = quantize(
        vision_model, out, calibration_text, observer=lambda _, __, what: seen.append(what)
    )
    assert seen[:2] == ["block 0, kept", "block 1"]
    for file in ("model.safetensors", "config.json"):
        assert (again.path / file).read_bytes() == (whole.path / file).read_bytes()


def test_checkpoints_are_evaluated_on_text(
    llava: Path, calibration_text: Path, tmp_path: Path
) -> None:
    from awq_edge.evaluate.report import evaluate_perplexity

    checkpoint = quantize(llava, tmp_path / "out", calibration_text)
    found = [
        evaluate_perplexity(target, calibration_text, window=64, stride=64, max_tokens=256)
        for target in (llava, checkpoint.path)
    ]
    assert found[0].perplexity != found[1].perplexity
    assert found[1].perplexity == pytest.approx(found[0].perplexity, rel=0.5)


def test_inspect_counts_the_tower(llava: Path, calibration_text: Path, tmp_path: Path) -> None:
    from awq_edge.inspect.model import inspect_model

    checkpoint = quantize(llava, tmp_path / "out", calibration_text, method="rtn")
    before, after = (inspect_model(path, hashes=False) for path in (llava, checkpoint.path))
    whole = sum(parameter.numel() for parameter in loaded_whole(llava).parameters())
    assert before.parameters == after.parameters == whole
    parts = {part.name: part for part in after.parts}
    assert set(parts["vision"].formats) == {"F16"} and parts["vision"].bits_per_weight == 16
    assert parts["vision"].bytes_per_token == 0 and "other" not in parts
    assert after.problems == ()
