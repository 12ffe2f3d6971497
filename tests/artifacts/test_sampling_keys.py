"""The model's own sampling: what generation_config.json says, and what it says nothing of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import awq_edge
from awq_edge.artifacts.sampling_keys import (
    FALLBACK,
    SamplingKeys,
    check_sampling,
    default_sampling,
    parse_sampling,
    sampling_of,
)
from awq_edge.errors import ConfigError, ModelError
from awq_edge.inspect.artifact import inspect_artifact
from awq_edge.run.run import run
from awq_edge.runtime.model import load
from awq_edge.runtime.sampling import Sampling

QWEN = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": 3}


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({}, None),
        ({"_from_model_config": True, "eos_token_id": 1}, None),
        ({"do_sample": True}, None),
        ({"temperature": None, "top_k": None}, None),
        (QWEN, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
        ({"do_sample": True, "top_k": 64}, {"temperature": 1, "top_k": 64}),
        ({"temperature": 0.7, "min_p": 0.1}, {"temperature": 0.7, "min_p": 0.1}),
        ({"do_sample": False, "temperature": 0.6, "top_k": 20}, {"temperature": 0}),
        ({"do_sample": False, "min_p": 0.1}, {"temperature": 0}),
        ({"repetition_penalty": 1.1}, {**FALLBACK.given(), "repetition_penalty": 1.1}),
        ({"temperature": 1, "top_k": -1, "top_p": 0}, {"temperature": 1, "top_k": 0, "top_p": 1}),
        ({"temperature": 1, "top_k": 50.0}, {"temperature": 1, "top_k": 50}),
    ],
)  # fmt: skip
def test_a_model_s_values_are_a_set(config: dict[str, Any], keys: dict[str, float] | None) -> None:
    found = sampling_of(config, "file")
    assert (None if found is None else found.given()) == keys
    assert default_sampling(None, config, "file").given() == (keys or FALLBACK.given())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 7}, "top_p is 7"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_k": True}, "top_k is True"),
        ({"do_sample": "yes"}, "do_sample is 'yes'"),
        ({"temperature": "\x1b[2J"}, r"temperature is '\x1b[2J'"),
    ],
)
def test_values_that_no_sampler_can_have(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as refused:
        sampling_of(config, "generation_config.json")
    assert words in str(refused.value) and "generation_config.json" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("greedy", {"temperature": 0}),
        ("temperature=0.6,top_p=0.9", {"temperature": 0.6, "top_p": 0.9}),
        (" top_k = 20 ", {"top_k": 20}),
    ],
)
def test_the_option_of_export(text: str, keys: dict[str, float]) -> None:
    assert parse_sampling(text, "--sampling").given() == keys


@pytest.mark.parametrize("text", ["", "hot", "temperature", "temperature=x", "top_k=-5", "heat=1"])
def test_what_the_option_of_export_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="--sampling"):
        parse_sampling(text, "--sampling")


def test_a_key_is_replaced_alone() -> None:
    mixed = SamplingKeys(temperature=0.1).over(FALLBACK)
    assert mixed.given() == {**FALLBACK.given(), "temperature": 0.1}
    assert Sampling.of(mixed, 7) == Sampling(0.1, 40, 0.95, 0.05, seed=7)
    assert check_sampling({"top_p": None, "top_k": 3}, "x").given() == {"top_k": 3}


@pytest.fixture(scope="module")
def with_config(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("own") / "own"
    shutil.copytree(tiny_llama, copy)
    (copy / "generation_config.json").write_text(json.dumps(QWEN))
    return copy


def exported(model: Path, out: Path, **options: Any) -> Path:
    recipe = awq_edge.load_recipe(method="none", accuracy_level=0, activation_dtype="float32")
    return awq_edge.export(model, out, recipe, **options).path


def test_the_bundle_has_the_model_s_set(with_config: Path, tmp_path: Path) -> None:
    bundle = exported(with_config, tmp_path / "own")
    found = inspect_artifact(bundle).sampling
    assert found is not None and found.source == "bundle"
    assert found.keys.given() == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    part = inspect_artifact(with_config).sampling
    assert part is not None and (part.source, part.keys) == ("model", found.keys)
    # A bundle of before has the file alone.
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["sampling"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with load(bundle, threads=1) as model:
        assert model.sampling == found.keys


def test_an_option_of_export_replaces_a_key(with_config: Path, tmp_path: Path) -> None:
    bundle = exported(with_config, tmp_path / "own", sampling={"temperature": 0.2})
    with load(bundle, threads=1) as model:
        assert model.sampling.given() == {"temperature": 0.2, "top_k": 20, "top_p": 0.95}


def test_a_model_whose_values_cannot_be_is_not_exported(with_config: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(with_config, broken)
    (broken / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(ModelError, match="temperature is 'hot'"):
        exported(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "temperature is 'hot'" in " ".join(inspect_artifact(broken).notes)


def test_run_is_greedy_unless_a_flag_asks(tiny_bundle: Path) -> None:
    def sampling(**options: Any) -> dict[str, Any]:
        report = run(tiny_bundle, "Once", max_new_tokens=2, threads=1, **options)
        return {
            name: getattr(report.request, name) for name in (*SamplingKeys.model_fields, "seed")
        }

    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert sampling() | {"seed": 0} == {"temperature": 0.0, **off, "seed": 0}
    one = sampling(sampling=SamplingKeys(temperature=0.7), seed=3)
    assert one == {"temperature": 0.7, **off, "seed": 3}
    own = {**off, **FALLBACK.given(), "seed": 3}
    assert sampling(sample=True, seed=3) == own
    assert sampling(sampling=SamplingKeys(top_k=5), seed=3) == own | {"top_k": 5}
