"""`awq_edge.quantize` and `awq_edge.export` as they are called now, and as they were."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import awq_edge
from awq_edge.deprecated import FORMER_OPTIONS
from awq_edge.errors import ConfigError
from awq_edge.recipe.recipes import command_fields

pytest.importorskip("torch", reason="needs the [host] extra")

FORMER: dict[str, dict[str, Any]] = {
    "quantize": {"method": "rtn", "bits": 8, "group_size": 32, "scheme": "symmetric"},
    "export": {"method": "rtn", "group_size": 32, "lm_head_bits": 8, "context": 64},
}


@pytest.mark.parametrize("call", ["quantize", "export"])
def test_former_arguments_make_the_same_and_warn(
    call: str, tiny_llama: Path, tmp_path: Path
) -> None:
    stage, seen = getattr(awq_edge, call), []
    observer = lambda *told: seen.append(told)  # noqa: E731
    with pytest.warns(
        DeprecationWarning, match=rf"awq_edge\.{call}.*awq_edge\.load_recipe"
    ) as told:
        stage(tiny_llama, tmp_path / "old", observer=observer, seed=None, **FORMER[call])
    (warning,) = told
    assert warning.filename == __file__
    assert "run=awq_edge.RunOptions(observer=" in str(warning.message) and seen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage(tiny_llama, tmp_path / "new", awq_edge.load_recipe("cpu", **FORMER[call]))
    for name in ("model.safetensors", "recipe.json", "config.json"):
        old, new = (tmp_path / side / name for side in ("old", "new"))
        assert old.exists() == new.exists()
        assert not old.exists() or old.read_bytes() == new.read_bytes()


def test_former_arguments_are_those_that_each_call_had(tmp_path: Path) -> None:
    for call, names in FORMER_OPTIONS.items():
        assert names < {field.name for field in command_fields(call)}  # they still are options
    with pytest.raises(TypeError, match=r"export\(\) got .* keyword argument 'bits_per_weight'"):
        awq_edge.export("demo", tmp_path / "out", bits_per_weight=3.5)
    with pytest.raises(TypeError, match=r"quantize\(\) got .* keyword argument 'context'"):
        awq_edge.quantize("demo", tmp_path / "out", context=64)
    with pytest.raises(TypeError, match=r"export\(\) got .* keyword argument 'bitz'"):
        awq_edge.export("demo", tmp_path / "out", bitz=3)


def test_former_arguments_are_checked_and_refused_alike(tmp_path: Path) -> None:
    with (
        pytest.warns(DeprecationWarning, match="executor"),
        pytest.raises(ConfigError, match="--executor slurm: allowed values"),
    ):
        awq_edge.quantize("demo", tmp_path / "out", executor="slurm")
    with pytest.raises(ConfigError, match="--executor slurm: allowed values"):
        awq_edge.export("demo", tmp_path / "out", run=awq_edge.RunOptions(executor="slurm"))
    recipe = awq_edge.load_recipe("cpu", bits=4)
    with (
        pytest.warns(DeprecationWarning, match="load_recipe"),
        pytest.raises(ConfigError, match=r"--bits 5: allowed values: 2, 3, 4 or 8"),
    ):
        awq_edge.quantize("demo", tmp_path / "out", recipe=recipe, bits=5)


def test_the_commands_warn_of_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    small = ["--method", "rtn", "--group-size", "32"]
    for arguments in (
        ["quantize", tiny_llama, "--out", checkpoint, *small],
        ["export", tiny_llama, "--out", bundle, *small, "--context", "64"],
    ):
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error::DeprecationWarning:awq_edge",
                "-m",
                "awq_edge",
                *arguments,
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "DeprecationWarning" not in done.stderr


def test_a_size_that_was_asked_for_stays(tmp_path: Path, tiny_llama: Path) -> None:
    """Asked for, by a flag or in Python, and chosen: the three that a group size may be."""
    asked = awq_edge.load_recipe("cpu", method="rtn", group_size=64)
    assert asked.asked == {"quantization.method": "rtn", "quantization.group_size": 64}
    assert asked.overridden({"quantization.scheme": "symmetric"}).asked["quantization.scheme"]
    chosen = awq_edge.load_recipe("cpu", method="rtn").resolved({"quantization.group_size": 64})
    assert "quantization.group_size" not in chosen.asked
    assert asked.quantization == chosen.quantization
    assert asked.model_dump_json() == chosen.model_dump_json()
