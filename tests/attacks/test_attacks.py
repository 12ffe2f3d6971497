"""Damaged and hostile inputs: an error line and exit code 2, or what the input still means."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from awq_edge.errors import AwqEdgeError, ConfigError, KeyValueError
from awq_edge.inspect.artifact import inspect_artifact

from .cases import TARGETS, Outcome, run_action

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = Path(__file__).parent / "hostile"
CASES = 117  # nine of each kind


@pytest.mark.slow
def test_damaged_inputs_end_in_a_line(tmp_path: Path) -> None:
    """The first cases of scripts/attack_inputs.py; thousands of others passed it."""
    pytest.importorskip("transformers", reason="needs the [host] extra")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/attack_inputs.py", "--cases", str(CASES)],
        env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    outcomes = summary["outcomes"]
    assert summary["defects"] == 0 and sum(outcomes.values()) == CASES
    # Damage is damage: were everything accepted, nothing would have been tried.
    assert outcomes["exit 2"] > CASES // 4
    # torch leaves folders of its own.
    assert list(tmp_path.glob("*awq*")) + list(tmp_path.glob("*partial*")) == []


def _outcome(action: Any, tmp_path: Path, seconds: float = 20) -> Outcome:
    folder, out = tmp_path / "case" / "input", tmp_path / "case" / "outputs"
    folder.mkdir(parents=True)
    out.mkdir()
    return run_action(action, folder, out, "planted", seconds)


def _raises(error: BaseException) -> Any:
    def action(folder: Path, out: Path) -> None:
        raise error

    return action


def test_the_attacks_see_what_they_look_for(tmp_path: Path) -> None:
    def litter(folder: Path, out: Path) -> None:
        (out / ".out.partial-1").touch()
        raise ConfigError("no")

    def beside(folder: Path, out: Path) -> None:
        (folder / "left").touch()

    def hang(folder: Path, out: Path) -> None:
        time.sleep(60)

    def escape(folder: Path, out: Path) -> None:
        os.write(2, b"error: \x1b[2J\n")
        raise SystemExit(2)

    def killed(folder: Path, out: Path) -> None:
        os.kill(os.getpid(), 11)

    def memory(folder: Path, out: Path) -> None:
        assert bytes(8 << 30)

    planted = {
        "exit 71": _raises(KeyError("x")),
        "litter: ": litter,
        "litter beside the input": beside,
        "control characters": escape,
        "killed by SIGSEGV": killed,
        "no error line": _raises(SystemExit(2)),
        "exit 1": _raises(SystemExit(1)),
    }
    for number, (problem, action) in enumerate(planted.items()):
        found = _outcome(action, tmp_path / str(number)).problem
        assert found is not None and found.startswith(problem)
    assert _outcome(hang, tmp_path / "hang", seconds=0.5).problem == "hang"
    assert _outcome(memory, tmp_path / "memory").problem == "exit 71"
    assert _outcome(_raises(ConfigError("no")), tmp_path / "fine").problem is None
    assert _outcome(lambda folder, out: None, tmp_path / "right").problem is None
    assert {target.name for target in TARGETS} >= {"model", "bundle", "recipe", "conversation"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, whose config.json the hostile ones are changes to."""
    import awq_edge

    source = Path(awq_edge.__file__).parent / "data" / "demo"
    return Path(shutil.copytree(source, tmp_path_factory.mktemp("demo") / "demo"))


def _hostile_configs() -> list[tuple[str, dict[str, Any]]]:
    """Changes to a config.json, by the key that the error must name."""
    lines = (HOSTILE / "config_changes.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["names"], entry["change"]) for entry in map(json.loads, lines)]


@pytest.mark.parametrize(("names", "change"), _hostile_configs())
def test_a_hostile_config_is_refused_by_its_key(
    names: str, change: dict[str, Any], demo: Path, tmp_path: Path
) -> None:
    from awq_edge.artifacts.input_files import read_json
    from awq_edge.model.archs import decoder_from_config
    from awq_edge.model.checkpoint import Checkpoint

    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    changed = {key: value for key, value in {**config, **change}.items() if value != "__missing__"}
    (folder / "config.json").write_text(json.dumps(changed))
    begin = time.monotonic()
    with pytest.raises(AwqEdgeError) as caught:
        decoder_from_config(read_json(folder / "config.json"))
        Checkpoint.open(folder)
    if isinstance(caught.value, KeyValueError):  # a model of a known type that is damaged
        try:
            problems = inspect_artifact(folder).problems
        except KeyValueError as error:
            problems = (str(error),)
        assert len(problems) == 1 and names in problems[0]
    message = str(caught.value)
    assert names in message and ("config.json" in message or str(folder) in message)
    assert len(message) < 400 and message.isprintable()
    assert time.monotonic() - begin < 10  # a bound, not a measurement: it was minutes and gigabytes


@pytest.mark.parametrize("file", sorted((HOSTILE / "whole").iterdir()), ids=lambda path: path.name)
def test_a_hostile_file_is_refused(file: Path, demo: Path, tmp_path: Path) -> None:
    """Every file stands for config.json, tokenizer_config.json, a recipe and a conversation."""
    from awq_edge.artifacts.input_files import read_json, read_toml
    from awq_edge.runtime import saved_conversation

    with pytest.raises(ConfigError, match=file.name.replace(".", r"\.")):
        read_json(file, error=ConfigError)
    with pytest.raises(ConfigError, match=file.name.replace(".", r"\.")):
        saved_conversation.read(file)
    if file.stat().st_size:  # an empty file is an empty table in TOML
        with pytest.raises(ConfigError, match=file.name.replace(".", r"\.")):
            read_toml(file, error=ConfigError)
