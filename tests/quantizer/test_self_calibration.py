"""Calibration on a model's own samples: what they begin with, what is affordable, what is kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import awq_edge
from awq_edge.artifacts.file_names import CALIBRATION_FILE
from awq_edge.device.system_memory import SystemMemory
from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer import QuantizedCheckpoint
from awq_edge.quantizer.calibration import own_text, sampling
from awq_edge.quantizer.calibration.scripts import own_scripts
from awq_edge.quantizer.report.schema import CalibrationReport
from awq_edge.runtime.tokenizer import Tokenizer
from tests.tiny_models import BOS, EOS, IM_END, save_tiny_llama

from .conftest import build_model, save_model
from .vision_models import drawn as drawn_set

SAMPLES, LENGTH = 8, 48


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("chat"), chat=True)


def quantized(
    model: Path, out: Path, calibration: str | None = None, *, observer: Any = None, **options: Any
) -> QuantizedCheckpoint:
    settings = {"group_size": 32, "samples": SAMPLES, "length": LENGTH, **options}
    run = awq_edge.RunOptions(observer=observer, overwrite=True)
    recipe = awq_edge.load_recipe("cpu", **settings)
    return awq_edge.quantize(model, out, recipe, calibration=calibration, run=run)


def rows(checkpoint: QuantizedCheckpoint) -> list[dict[str, Any]]:
    text = (checkpoint.path / CALIBRATION_FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.rstrip("\n").split("\n")]


def drawn(checkpoint: QuantizedCheckpoint) -> CalibrationReport:
    assert checkpoint.report.calibration is not None
    return checkpoint.report.calibration


def test_the_report_names_the_samples_and_the_checkpoint_keeps_them(
    chat: Path, tmp_path: Path
) -> None:
    checkpoint = quantized(chat, tmp_path / "out")
    report, samples = drawn(checkpoint), rows(checkpoint)
    assert report.source == "8 samples of the model's own, 2 of them conversations"
    assert (report.samples, report.own_samples, report.conversations) == (8, 8, 2)
    (file,) = report.files
    data = (checkpoint.path / CALIBRATION_FILE).read_bytes()
    assert file.sha256 == hashlib.sha256(data).hexdigest() and file.bytes == len(data)
    assert (file.name, file.documents, file.whole) == (CALIBRATION_FILE, 8, True)
    ids = np.array([row["ids"] for row in samples])
    assert ids.shape == (SAMPLES, LENGTH) and len({tuple(row) for row in ids.tolist()}) == SAMPLES
    assert report.sha256 == hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()
    tokenizer = Tokenizer(chat)
    for row in samples:
        assert row["text"] == tokenizer.decode(row["ids"], skip_special_tokens=False)
        opening = "<s><|im_start|>user\n" if row["kind"] == "conversation" else "<s>"
        assert row["text"].startswith(opening)
    assert [row["kind"] for row in samples] == (["document"] * 3 + ["conversation"]) * 2
    # The file can be given again, and does not stand in the way of the next run.
    again = quantized(chat, tmp_path / "again", str(checkpoint.path / CALIBRATION_FILE))
    assert drawn(again).own_samples == 0
    assert not (quantized(chat, checkpoint.path, "packaged").path / CALIBRATION_FILE).exists()


def test_a_seed_repeats_the_samples(plain: Path, tmp_path: Path) -> None:
    names = {
        name: quantized(plain, tmp_path / name, seed=int(name[0])) for name in ("0", "0b", "1")
    }
    weights = {n: (c.path / "model.safetensors").read_bytes() for n, c in names.items()}
    files = {n: (c.path / CALIBRATION_FILE).read_bytes() for n, c in names.items()}
    assert files["0"] == files["0b"] != files["1"]
    assert weights["0"] == weights["0b"] != weights["1"]
    assert {row["kind"] for row in rows(names["0"])} == {"document"}  # there is no chat template


def test_turns_stand_in_the_templates_frames(chat: Path) -> None:
    """A model of short turns: question and answer take turns, nothing else is special."""
    tokenizer, decoder = Tokenizer(chat), Checkpoint.open(chat).decoder
    script = own_scripts(tokenizer, decoder, samples=4, seed=0)[3]
    between, behind = (tokenizer.decode(b, skip_special_tokens=False) for b in script.breaks)
    assert between == "<|im_end|>\n<|im_start|>assistant\n"
    assert behind == "<|im_end|>\n<|im_start|>user\n"


def test_a_broken_template_is_no_obstacle(plain: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(plain, tmp_path / "model"))
    (model / "chat_template.jinja").write_text("{% for m in messages %}")
    scripts = own_scripts(Tokenizer(model), Checkpoint.open(model).decoder, samples=4, seed=0)
    assert not any(script.is_conversation for script in scripts)


def test_documents_begin_with_what_the_tokenizer_has(plain: Path, tmp_path: Path) -> None:
    """BOS where a text has one, else a known separator, else BOS or EOS by config.json, else any
    token."""

    def openings(model: Path, **changes: Any) -> list[tuple[int, ...]]:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | changes))
        decoder = Checkpoint.open(model).decoder
        return [s.opening for s in own_scripts(Tokenizer(model), decoder, samples=5, seed=0)]

    model = Path(shutil.copytree(plain, tmp_path / "bos"))
    assert set(openings(model)) == {(BOS,)}
    # What follows has a tokenizer without a special token of its own.
    model = save_model(build_model("llama"), tmp_path / "none")
    assert set(openings(model)) == {(1,)}
    assert set(openings(model, bos_token_id=None)) == {(2,)}
    without = openings(model, bos_token_id=None, eos_token_id=None)
    assert len(set(without)) > 2 and all(len(each) == 1 for each in without)
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "z"}))
    text = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(text.replace('"y"', '"<|endoftext|>"'))
    separator = Tokenizer(model).token_id("<|endoftext|>")
    assert set(openings(model)) == {(separator,)}
    checkpoint = quantized(model, tmp_path / "out")
    assert {row["ids"][0] for row in rows(checkpoint)} == {separator}


def test_a_model_that_yields_ends_alone_writes_words_too(plain: Path, tmp_path: Path) -> None:
    """Every token of its is EOS, whatever came before: 16 others stand in each document."""
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(plain, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"].fill_(1.0)
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name].zero_()
    tensors["lm_head.weight"][EOS] = 10.0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    for row in rows(quantized(model, tmp_path / "out")):
        ids = np.array(row["ids"])
        assert np.flatnonzero(ids == BOS).tolist() == [0, 17, 34]
        assert EOS not in ids and len(set(ids.tolist())) > 4


def test_weights_that_overflow_are_an_error(plain: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(plain, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] *= 3e38
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="logits are not finite"):
        quantized(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize("seconds", [0.0, None])
def test_packaged_text_stands_for_what_is_too_slow(
    chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float | None
) -> None:
    decoder = Checkpoint.open(chat).decoder
    cost = own_text.drawing_cost(decoder, torch.device("cpu"), LENGTH, SAMPLES)
    budget = 3.5 * cost.seconds if seconds is None else seconds
    monkeypatch.setattr(own_text, "_BUDGET_SECONDS", budget)
    checkpoint = quantized(chat, tmp_path / "out")
    own = 3 if seconds is None else 0
    report = drawn(checkpoint)
    assert (report.samples, report.own_samples, report.conversations) == (SAMPLES, own, 0)
    (note,) = (n for n in checkpoint.report.notes if "calibration" in n)
    if own:
        assert report.source == "3 samples of the model's own; 5 of the packaged text"
        assert "3 of 8 samples are the model's own, the rest packaged text: all of them" in note
        assert [file.name for file in report.files] == [CALIBRATION_FILE, "packaged"]
        assert len(rows(checkpoint)) == 3
    else:
        assert report.source == "packaged" and "the packaged text, not the model's own" in note
        assert not (checkpoint.path / CALIBRATION_FILE).exists()
    # Who asks for them gets them all.
    asked = quantized(chat, tmp_path / "out", "self")
    assert drawn(asked).own_samples == SAMPLES and not asked.report.notes
    assert drawn(quantized(chat, tmp_path / "out", "packaged")).own_samples == 0


def test_a_model_that_does_not_fit_whole_is_not_loaded_whole(
    chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SystemMemory(total=200_000, available=100_000)
    monkeypatch.setattr(own_text, "read_system_memory", lambda: small)
    monkeypatch.setattr(sampling, "draw", None)
    checkpoint = quantized(chat, tmp_path / "out")
    assert drawn(checkpoint).source == "packaged"
    (note,) = (n for n in checkpoint.report.notes if "calibration" in n)
    assert "the whole model takes" in note and "200.0 kB" in note
    with pytest.raises(ConfigError, match="--calibration self: the whole model takes"):
        quantized(chat, tmp_path / "other", "self")


def test_fewer_samples_than_are_worth_it_are_not_drawn(
    chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, cpu = Checkpoint.open(chat).decoder, torch.device("cpu")
    cost = own_text.drawing_cost(decoder, cpu, LENGTH, 64)
    for seconds, count in ((7.5, 0), (8.5, 8), (63.5, 63), (64.5, 64)):
        monkeypatch.setattr(own_text, "_BUDGET_SECONDS", seconds * cost.seconds)
        found, why = own_text.affordable_samples(decoder, cpu, samples=64, length=LENGTH)
        assert found == count and (why is None) == (count == 64)


def test_an_interrupted_run_goes_on_with_the_same_samples(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantized(plain, tmp_path / "whole")

    def stop(done: int, total: int, what: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        quantized(plain, out, observer=stop)
    kept = tmp_path / ".out.resume" / CALIBRATION_FILE
    assert kept.read_bytes() == (whole.path / CALIBRATION_FILE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "draw", None)  # nothing is drawn again
        told: list[str] = []
        made = quantized(plain, out, observer=lambda done, total, what: told.append(what))
    assert "block 0, kept" in told
    for name in (CALIBRATION_FILE, "model.safetensors"):
        assert (made.path / name).read_bytes() == (whole.path / name).read_bytes()
    # One that is damaged is drawn again; other settings draw others.
    with pytest.raises(KeyboardInterrupt):
        quantized(plain, out, observer=stop)
    kept.write_text(kept.read_text()[:-20])
    assert rows(quantized(plain, out)) == rows(whole)
    with pytest.raises(KeyboardInterrupt):
        quantized(plain, out, observer=stop)
    assert rows(quantized(plain, out, seed=3)) != rows(whole)


def test_an_export_draws_them_too(chat: Path, tmp_path: Path) -> None:
    recipe = awq_edge.load_recipe("cpu", group_size=32, samples=4, length=LENGTH, context=64)
    bundle = awq_edge.export(chat, tmp_path / "bundle", recipe, calibration="self")
    report = json.loads((bundle.path / "quantization_report.json").read_text())
    assert report["calibration"]["own_samples"] == 4
    assert report["calibration"]["conversations"] == 1


def test_samples_with_images_hold_own_text(vision_model: Path, tmp_path: Path) -> None:
    recipe = awq_edge.load_recipe("cpu", group_size=32, samples=4, length=64)
    checkpoint = awq_edge.quantize(vision_model, tmp_path / "out", recipe)
    report = drawn(checkpoint)
    assert (report.own_samples, report.image_samples, report.image_tokens > 0) == (4, 2, True)
    assert "4 samples of the model's own; 2 of 4 samples with drawn pictures" == report.source
    text = Path(tmp_path / "text.txt")
    text.write_text("abcdefgh" * 200)
    other = drawn_set(vision_model, text, samples=4, length=64)
    own = np.array([row["ids"] for row in rows(checkpoint)])
    assert own.shape == other.ids.shape


def test_end_of_a_chat_models_turn_is_never_drawn_twice(chat: Path, tmp_path: Path) -> None:
    """Special tokens are the script's alone: a document has none behind its BOS but another BOS."""
    special = Tokenizer(chat).special_ids()
    for row in rows(quantized(chat, tmp_path / "out", samples=4)):
        inside = set(row["ids"][1:]) & special
        assert inside <= ({BOS} if row["kind"] == "document" else {IM_END, IM_END - 1})
