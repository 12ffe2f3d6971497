"""One number, whatever runs the model: transformers, a checkpoint dequantized, a bundle."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import awq_edge
from awq_edge.errors import ArtifactError, ConfigError, ModelError
from awq_edge.evaluate.divergence_report import evaluate_divergence
from awq_edge.evaluate.report import PerplexityReport, evaluate_perplexity
from awq_edge.evaluate.task_model import open_task_model
from awq_edge.model.layouts import awq_gemm
from awq_edge.runtime.tokenizer import Tokenizer

torch = pytest.importorskip("torch", reason="needs the [host] extra")

# What the project promises between runtimes at accuracy level 0; the same float32 arithmetic in
# another order is really some 1e-6 apart.
PROMISED = 1e-3
SAME_ARITHMETIC = 1e-5
WINDOW, STRIDE = 64, 32


def published_loop(
    model: Any, ids: list[int], window: int, stride: int, bos: int | None = None
) -> float:
    """Perplexity as transformers' documentation computes it: labels, and the model's own loss.

    bos: stands before each window, and takes one of its places.
    """
    if bos is not None:
        window -= 1
    tokens = torch.tensor([ids])
    nll_sum, n_tokens, previous_end = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        inputs = tokens[:, begin:end]
        if bos is not None:
            inputs = torch.cat([torch.tensor([[bos]]), inputs], dim=1)
        labels = inputs.clone()
        labels[:, : -(end - previous_end)] = -100
        with torch.no_grad():
            loss = model(inputs, labels=labels).loss
        valid = int((labels != -100).sum()) - int(labels[0, 0] != -100)
        nll_sum += float(loss) * valid
        n_tokens += valid
        previous_end = end
        if end == len(ids):
            break
    return math.exp(nll_sum / n_tokens)


def measure(target: Path, text: Path, **options: Any) -> PerplexityReport:
    settings = {"window": WINDOW, "stride": STRIDE, **options}
    return evaluate_perplexity(target, text, **settings)


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)


@pytest.fixture(scope="module")
def ids(tiny_llama: Path, text: Path) -> list[int]:
    """Of the text, without the BOS that the tokenizer puts before it."""
    return Tokenizer(tiny_llama).encode(text.read_text("utf-8"), add_special_tokens=False)


@pytest.fixture(scope="module")
def bos(tiny_llama: Path) -> int:
    (found,) = Tokenizer(tiny_llama).prefix_ids
    return found


def test_model_is_the_published_loop(
    tiny_llama: Path, text: Path, reference: Any, ids: list[int], bos: int
) -> None:
    """With BOS before each window, as the tokenizer puts it before a text."""
    report = measure(tiny_llama, text)
    expected = published_loop(reference, ids, WINDOW, STRIDE, bos)
    assert report.perplexity == pytest.approx(expected, rel=SAME_ARITHMETIC)
    # A BOS before the first window alone is another number.
    once = published_loop(reference, [bos, *ids], WINDOW, STRIDE)
    assert report.perplexity != pytest.approx(once, rel=SAME_ARITHMETIC)
    assert report.tokens == report.text.tokens == len(ids)
    assert report.text.prefix == (bos,)
    assert (report.model.kind, report.model.runtime) == ("model", "transformers")
    assert report.model.bits is None
    assert {"torch", "transformers"} <= set(report.versions)


def test_a_tokenizer_without_bos_is_the_published_loop(
    tiny_llama: Path, text: Path, reference: Any, ids: list[int], tmp_path: Path
) -> None:
    model = without_bos(tiny_llama, tmp_path / "model")
    report = measure(model, text)
    assert report.perplexity == pytest.approx(
        published_loop(reference, ids, WINDOW, STRIDE), rel=SAME_ARITHMETIC
    )
    assert report.tokens == len(ids) - 1
    assert report.text.prefix == ()


def test_a_text_that_begins_with_bos_has_it_once(
    tiny_llama: Path, text: Path, bos: int, tmp_path: Path
) -> None:
    path = tmp_path / "with_bos.txt"
    path.write_text(Tokenizer(tiny_llama).special_tokens["bos_token"] + text.read_text("utf-8"))
    assert measure(tiny_llama, path).perplexity == measure(tiny_llama, text).perplexity


def without_bos(model: Path, copy: Path) -> Path:
    """A copy of a model whose tokenizer puts nothing before a text."""
    shutil.copytree(model, copy)
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": False}))
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    return copy


def test_the_path_is_the_one_that_was_given(
    tiny_llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_llama.parent)
    for given in (tiny_llama.name, "demo"):
        assert measure(Path(given), text, max_tokens=4).model.path == given


def test_bundle_gives_the_models_number(tiny_llama: Path, tiny_bundle: Path, text: Path) -> None:
    model, bundle = measure(tiny_llama, text), measure(tiny_bundle, text)
    assert bundle.perplexity == pytest.approx(model.perplexity, rel=SAME_ARITHMETIC)
    assert bundle.tokens == model.tokens
    assert (bundle.model.kind, bundle.model.runtime) == ("bundle", "onnxruntime")
    assert bundle.model.accuracy_level == 0
    assert "torch" not in bundle.versions


def test_checkpoint_is_its_dequantized_weights(
    checkpoint: Path, text: Path, reference: Any, ids: list[int], bos: int
) -> None:
    """The layout is read here by a loop over bits, not by the package."""
    from safetensors.numpy import load_file

    stored = load_file(checkpoint / "model.safetensors")
    weights = {n: torch.from_numpy(v).float() for n, v in stored.items() if v.dtype != np.int32}
    names = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    assert len(names) == 14
    for name in names:
        del weights[f"{name}.scales"]
        weights[f"{name}.weight"] = torch.from_numpy(_dequantized(stored, name))
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    try:
        reference.load_state_dict(weights, strict=True)
        expected = published_loop(reference, ids, WINDOW, STRIDE, bos)
    finally:
        reference.load_state_dict(before)
    report = measure(checkpoint, text)
    assert report.perplexity == pytest.approx(expected, rel=SAME_ARITHMETIC)
    assert report.perplexity != pytest.approx(
        published_loop(reference, ids, WINDOW, STRIDE, bos), rel=PROMISED
    )
    model = report.model
    assert (model.kind, model.method, model.bits, model.group_size) == ("checkpoint", "rtn", 4, 32)


def _dequantized(stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    """float32 [out, in] of one AutoAWQ gemm linear."""

    def codes(packed: np.ndarray) -> np.ndarray:
        bits = packed.view(np.uint32).astype(np.uint64)
        columns = np.empty((packed.shape[0], packed.shape[1] * 8), np.float32)
        for nibble, column in enumerate(awq_gemm.ORDER):
            columns[:, column::8] = (bits >> np.uint64(4 * nibble)) & np.uint64(15)
        return columns

    scales = stored[f"{name}.scales"].astype(np.float32)
    group = stored[f"{name}.qweight"].shape[0] // len(scales)
    zeros = codes(stored[f"{name}.qzeros"]).repeat(group, axis=0)
    weight = (codes(stored[f"{name}.qweight"]) - zeros) * scales.repeat(group, axis=0)
    return np.ascontiguousarray(weight.T)


def test_bundle_of_a_checkpoint_gives_its_number(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    recipe = awq_edge.load_recipe(accuracy_level=0, lm_head_bits=16)
    bundle = awq_edge.export(checkpoint, tmp_path / "bundle", recipe).path
    expected = measure(checkpoint, text).perplexity
    report = measure(bundle, text)
    assert report.perplexity == pytest.approx(expected, rel=PROMISED)
    assert (report.model.method, report.model.bits, report.model.group_size) == ("rtn", 4, 32)


def test_a_window_larger_than_the_prefill_chunk(
    tiny_llama: Path, tiny_bundle: Path, text: Path
) -> None:
    wide = {"window": 200, "stride": 199}
    model, bundle = measure(tiny_llama, text, **wide), measure(tiny_bundle, text, **wide)
    assert bundle.perplexity == pytest.approx(model.perplexity, rel=SAME_ARITHMETIC)


def test_stride_matters(tiny_bundle: Path, text: Path) -> None:
    few, many = measure(tiny_bundle, text, stride=64), measure(tiny_bundle, text, stride=16)
    assert few.perplexity != pytest.approx(many.perplexity, rel=SAME_ARITHMETIC)
    # Behind a BOS every token is scored; the stride is cut to the window's text.
    assert (few.stride, few.tokens) == (63, many.tokens)


def test_defaults_follow_the_context(tiny_bundle: Path, text: Path) -> None:
    report = evaluate_perplexity(tiny_bundle, text)
    assert (report.window, report.stride) == (256, 128)


def test_max_tokens_and_bits_per_byte(tiny_bundle: Path, text: Path, ids: list[int]) -> None:
    report = measure(tiny_bundle, text, max_tokens=41)
    assert report.tokens == 41
    words = Tokenizer(tiny_bundle).decode(ids[:41])
    expected = report.nll / math.log(2) / len(words.encode("utf-8"))
    assert report.bits_per_byte == pytest.approx(expected)
    assert report.text.tokens == len(ids)


def test_report_is_json_and_back(tiny_bundle: Path, text: Path) -> None:
    report = measure(tiny_bundle, text, max_tokens=30)
    again = PerplexityReport.model_validate_json(report.model_dump_json())
    assert again == report
    assert json.loads(report.model_dump_json())["perplexity"] == report.perplexity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu"}, "--device cpu: a bundle runs as it was exported"),
        ({"dtype": "float16"}, "--dtype float16: a bundle runs as it was exported"),
        ({"window": 300, "stride": 100}, "--window 300 is beyond the context of 256"),
        ({"stride": 0}, "--stride 0"),
        ({"max_tokens": 0}, "--max-tokens 0"),
    ],
)
def test_what_a_bundle_cannot_do(
    tiny_bundle: Path, text: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(tiny_bundle, text, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "--device gpu: allowed values: cpu, cuda"),
        ({"dtype": "int4"}, "--dtype int4: allowed values: float32, float16, bfloat16"),
        ({"threads": 0}, "--threads 0"),
    ],
)
def test_what_a_model_cannot_do(
    tiny_llama: Path, text: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(tiny_llama, text, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is blank"), (b" \n", "the file is blank"), (b"ab\xff", "not UTF-8 at byte 2")],
)
def test_texts_that_cannot_be_scored(
    tiny_bundle: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        measure(tiny_bundle, path)
    with pytest.raises(ConfigError, match=r"none\.txt does not exist"):
        measure(tiny_bundle, tmp_path / "none.txt")


def test_a_checkpoint_that_was_changed_is_no_checkpoint_to_measure(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    """As for `export`: weights that are not those of the report."""
    changed = Path(shutil.copytree(checkpoint, tmp_path / "changed"))
    file = changed / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-500:-400] = bytes(100)
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.safetensors was changed: .*--no-verify"):
        measure(changed, text)
    for pair in ((changed, checkpoint), (checkpoint, changed)):
        with pytest.raises(ArtifactError, match=r"model\.safetensors was changed: .*--no-verify"):
            evaluate_divergence(*pair, text, window=WINDOW)
    with pytest.raises(ArtifactError, match=r"model\.safetensors was changed: .*--no-verify"):
        open_task_model(
            str(changed), context=None, batch_size=1, device=None, dtype=None, threads=None
        )
    assert measure(changed, text, verify=False).perplexity != measure(checkpoint, text).perplexity


@pytest.mark.parametrize("quantized", [False, True])
def test_every_weight_is_accounted_for(
    tiny_llama: Path, checkpoint: Path, text: Path, tmp_path: Path, quantized: bool
) -> None:
    """transformers alone fills a missing weight with random numbers, and drops an unknown one."""
    from safetensors.numpy import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(checkpoint if quantized else tiny_llama, copy)
    stored = load_file(copy / "model.safetensors")
    norm = "model.layers.1.input_layernorm.weight"
    save_file({n: v for n, v in stored.items() if n != norm}, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"layers\.1\.input_layernorm"):
        measure(copy, text, verify=False)
    save_file({**stored, "model.layers.1.extra.weight": stored[norm]}, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"layers\.1\.extra"):
        measure(copy, text, verify=False)
