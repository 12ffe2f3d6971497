"""The shipped table, names, and the hub, of which one file is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from awq_edge.errors import ModelError
from awq_edge.fit.models import KnownModel, ModelConfig, all_known, find_model, known_models
from awq_edge.model.archs import decoder_from_config

MODELS = {model.name: model for model in known_models()}
# Counts that others publish may leave a norm out: two of the OPTs', by 1e-5.
COUNT_TOLERANCE = 5e-5


def published(text: str) -> tuple[float, float]:
    """A count and how far from it a model of that count may be: "13015864320", or "6.7B" of a card,
    which is rounded in its last digit."""
    if not text.endswith("B"):
        return float(text), COUNT_TOLERANCE * float(text)
    digits = text.removesuffix("B")
    decimals = len(digits.partition(".")[2])
    return float(digits) * 1e9, 0.5 * 10**-decimals * 1e9


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_that_are_published(name: str) -> None:
    count, tolerance = published(MODELS[name].parameters)
    assert abs(find_model(name).parameters - count) <= tolerance


def test_most_counts_are_exact() -> None:
    """The comparison is not one of rounded figures."""
    counts = {name: model.parameters for name, model in MODELS.items()}
    exact = [name for name, count in counts.items() if count == str(find_model(name).parameters)]
    assert len(exact) >= 35, exact


def test_a_wrong_figure_is_found() -> None:
    model = find_model("Llama-2-13B")
    config = {**model.config, "intermediate_size": 13696}
    wrong = ModelConfig("x", "x", Path(), config, decoder_from_config(config))
    count, tolerance = published(MODELS["Llama-2-13B"].parameters)
    assert abs(wrong.parameters - count) > tolerance


def test_the_issue_s_models_are_there() -> None:
    wanted = [
        *("Llama-2-7B", "Llama-2-13B", "Llama-2-70B", "Llama-3-8B", "Llama-3-70B"),
        *("Llama-3.2-1B", "Llama-3.2-3B", "Mistral-7B-v0.1", "Mixtral-8x7B"),
        *(f"Qwen2.5-{size}" for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")),
        *(f"Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")),
        *("Gemma-2-2B", "Gemma-2-9B", "Gemma-2-27B", "Gemma-3-1B", "Phi-3-mini-4k", "Phi-4-mini"),
        *(f"OPT-{size}" for size in ("125M", "350M", "1.3B", "2.7B", "6.7B", "13B", "30B", "66B")),
    ]
    assert set(wanted) <= set(MODELS)


def test_every_entry_cites_its_sources() -> None:
    names = [name.lower() for model in known_models() for name in (model.name, *model.hub_ids)]
    assert len(names) == len(set(names))
    for model in known_models():
        assert model.source.startswith(f"config.json of {model.hub_ids[0]}, as in ")
        assert model.parameters_source


@pytest.mark.parametrize("name", ["llama-2-7b", "meta-llama/Llama-2-7b-chat-hf", "Llama-2-7B"])
def test_names_and_hub_ids_of_the_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)  # nothing is asked for
    found = find_model(name)
    assert (found.name, found.decoder.num_layers) == ("Llama-2-7B", 32)
    assert found.source.startswith("shipped table: config.json of meta-llama/Llama-2-7b-hf")


def test_a_hub_id_downloads_config_json_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        config = {**MODELS["Llama-3.2-1B"].config, "num_hidden_layers": 8}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = find_model("someone/half-a-llama")
    assert asked == [("someone/half-a-llama", ["config.json", "hf_quant_config.json"])]
    assert found.decoder.num_layers == 8
    assert found.source == "config.json of someone/half-a-llama on the hub"


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, *, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelError, match="someone/model' cannot be downloaded"):
        find_model("someone/model")


def test_a_directory_and_a_name_that_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["OPT-125M"].config))
    assert find_model(str(tmp_path)).decoder.model_type == "opt"
    with pytest.raises(ModelError, match=r"did you mean .*Qwen2\.5-7B"):
        find_model("qwen2.5-7")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ModelError, match="'mamba' is not supported"):
        find_model(str(tmp_path))


def test_the_table_is_read_whole() -> None:
    assert len(all_known()) == len(MODELS) >= 45
    with pytest.raises(ValueError, match="extra"):
        KnownModel.model_validate({**MODELS["OPT-125M"].model_dump(), "extra": 1})


def test_a_window_that_is_null_is_none() -> None:
    """Without the key transformers takes one of 4,096 tokens for a Mistral."""
    windows = {name: set(find_model(name).decoder.windows) for name in
               ("Mistral-7B-v0.1", "Mistral-7B-v0.3")}  # fmt: skip
    assert windows == {"Mistral-7B-v0.1": {4096}, "Mistral-7B-v0.3": {None}}
