"""`evaluate_divergence` over every pair of a model, a checkpoint and a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import awq_edge
from awq_edge.errors import ConfigError
from awq_edge.evaluate.divergence_report import DivergenceReport, evaluate_divergence
from awq_edge.evaluate.report import evaluate_perplexity
from awq_edge.runtime.tokenizer import Tokenizer

torch = pytest.importorskip("torch", reason="needs the [host] extra")

# The same float32 arithmetic in another order: logits are some 1e-6 apart, and KL is quadratic in
# them.
SAME_KL = 1e-9
SAME_ARITHMETIC = 1e-5
WINDOW, STRIDE = 64, 32


def measure(target: Path, reference: Path, text: Path, **options: Any) -> DivergenceReport:
    settings = {"window": WINDOW, "stride": STRIDE, **options}
    return evaluate_divergence(target, reference, text, **settings)


@pytest.fixture(scope="module")
def rounded_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = awq_edge.load_recipe(accuracy_level=0, lm_head_bits=16, context=128)
    out = tmp_path_factory.mktemp("rounded") / "bundle"
    return awq_edge.export(checkpoint, out, recipe).path


def test_a_model_and_itself(tiny_bundle: Path, tiny_llama: Path, text: Path) -> None:
    for target in (tiny_bundle, tiny_llama):
        report = measure(target, target, text)
        assert report.kl.mean == report.kl.max == 0
        assert report.top1_agreement == report.top5_overlap == report.perplexity_ratio == 1
        assert report.perplexity_ratio_standard_error == 0


def test_a_bundle_is_its_model(tiny_bundle: Path, tiny_llama: Path, text: Path) -> None:
    report = measure(tiny_bundle, tiny_llama, text)
    assert 0 < report.kl.max < SAME_KL
    assert report.top1_agreement > 0.99  # two logits may tie to 1e-6
    assert (report.model.kind, report.reference.kind) == ("bundle", "model")
    assert {"onnxruntime", "torch"} <= set(report.versions)


def test_a_checkpoint_against_torch(checkpoint: Path, tiny_llama: Path, text: Path) -> None:
    """KL by torch in float64, over windows that begin with BOS each."""
    from awq_edge.evaluate.logits_models import open_logits_model

    options: dict[str, Any] = {"window": WINDOW, "device": None, "dtype": None, "threads": None}
    models = [open_logits_model(str(path), **options).model for path in (checkpoint, tiny_llama)]
    bos, *ids = Tokenizer(tiny_llama).encode(text.read_text(encoding="utf-8"))
    divergences, agreements, before = [], [], 0
    for begin in range(0, len(ids), STRIDE):
        end = min(begin + WINDOW - 1, len(ids))
        window = torch.tensor([[bos, *ids[begin:end]]])
        with torch.no_grad():
            logs = [torch.log_softmax(model(window).logits[0].double(), -1) for model in models]
        q, p = (log[before - begin : end - begin] for log in logs)
        divergences.append(torch.nn.functional.kl_div(q, p, reduction="none", log_target=True))
        agreements.append((q.argmax(-1) == p.argmax(-1)).double())
        before = end
        if end == len(ids):
            break
    expected = torch.cat(divergences).sum(-1)
    report = measure(checkpoint, tiny_llama, text)
    assert report.tokens == len(expected) == len(ids)
    assert report.kl.mean == pytest.approx(float(expected.mean()), rel=SAME_ARITHMETIC)
    assert report.kl.standard_error == pytest.approx(
        float(expected.std()) / len(expected) ** 0.5, rel=SAME_ARITHMETIC
    )
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
        quantile = float(torch.quantile(expected, share))
        assert getattr(report.kl, name) == pytest.approx(quantile, rel=SAME_ARITHMETIC)
    assert report.top1_agreement == pytest.approx(float(torch.cat(agreements).mean()))
    assert report.top1_agreement < 1
    for path, found in ((checkpoint, report.perplexity), (tiny_llama, report.reference_perplexity)):
        alone = evaluate_perplexity(path, text, window=WINDOW, stride=STRIDE)
        assert found == pytest.approx(alone.perplexity, rel=SAME_ARITHMETIC)
    assert report.perplexity_ratio == report.perplexity / report.reference_perplexity
    assert 0 < (report.perplexity_ratio_standard_error or 0) < 0.1


def test_the_order_of_the_two_matters(checkpoint: Path, tiny_llama: Path, text: Path) -> None:
    one, other = measure(checkpoint, tiny_llama, text), measure(tiny_llama, checkpoint, text)
    assert one.kl.mean != pytest.approx(other.kl.mean, rel=SAME_ARITHMETIC)
    assert one.perplexity_ratio == pytest.approx(1 / other.perplexity_ratio)


def test_two_bundles_give_the_checkpoints_numbers(
    rounded_bundle: Path, tiny_bundle: Path, checkpoint: Path, tiny_llama: Path, text: Path
) -> None:
    found = measure(rounded_bundle, tiny_bundle, text)
    expected = measure(checkpoint, tiny_llama, text)
    assert found.kl.mean == pytest.approx(expected.kl.mean, rel=1e-3)
    assert (found.model.method, found.reference.method) == ("rtn", None)
    assert "torch" not in found.versions


def test_defaults_follow_the_shorter_context(
    rounded_bundle: Path, tiny_bundle: Path, text: Path
) -> None:
    report = evaluate_divergence(tiny_bundle, rounded_bundle, text, max_tokens=41)
    assert (report.window, report.stride, report.tokens) == (128, 64, 41)


def test_flags_go_to_the_one_that_is_no_bundle(
    tiny_bundle: Path, tiny_llama: Path, text: Path
) -> None:
    options: dict[str, Any] = {"dtype": "bfloat16", "device": "cpu", "max_tokens": 40}
    report = measure(tiny_llama, tiny_bundle, text, **options)
    assert (report.model.dtype, report.reference.dtype) == ("bfloat16", "float32")
    assert report.kl.mean > SAME_KL
    with pytest.raises(ConfigError, match="--device cpu: a bundle runs as it was exported"):
        measure(tiny_bundle, tiny_bundle, text, device="cpu")


def test_report_is_json_and_back(tiny_bundle: Path, text: Path) -> None:
    report = measure(tiny_bundle, tiny_bundle, text, max_tokens=1)
    assert (report.kl.standard_error, report.perplexity_ratio_standard_error) == (None, None)
    again = DivergenceReport.model_validate_json(report.model_dump_json())
    assert again == report
    assert json.loads(report.model_dump_json())["kl"]["mean"] == 0


def test_tokenizers_that_cut_the_text_differently(
    tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    """Same vocabulary, no BOS before a text."""
    copy = tmp_path / "no-bos"
    shutil.copytree(tiny_llama, copy)
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": False}))
    with pytest.raises(ConfigError, match="cut the text into different tokens"):
        measure(copy, tiny_llama, text)


def test_models_of_other_tokenizers(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other"
    shutil.copytree(tiny_llama, copy)
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="different tokenizers: 'A' is token"):
        measure(copy, tiny_llama, text)
    with pytest.raises(ConfigError, match="have vocabularies of 4096 and"):
        measure(Path("demo"), tiny_llama, text)
