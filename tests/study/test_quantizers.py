"""The comparison with peers: rows are kept, what fails is said, peers leave plain models."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from awq_edge.errors import ArtifactError, ConfigError
from experiments.quantizers.making import Setting, bits_per_weight, make
from experiments.quantizers.rows import chosen, rows
from experiments.quantizers.run import Scoring, collect, run_rows
from experiments.quantizers.table import table_of

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# A peer that keeps the protocol: rounds the weights of the blocks to halves.
PEER = """
import sys
sys.path.insert(0, {folder!r})
from arguments import parser
from dense_checkpoint import block_linears, calibration_ids, write_model, write_result
from transformers import AutoModelForCausalLM

flags = parser("")
flags.add_argument("--bits", type=int)
arguments = flags.parse_args()
ids = calibration_ids(arguments.calibration)
assert ids.shape == (4, 64) and arguments.steps == 7 and arguments.group_size == 64
model = AutoModelForCausalLM.from_pretrained(arguments.model)
linears = block_linears(model)
assert len(linears) == 14
weights = {{f"{{n}}.weight": (each.weight * 2).round() / 2 for n, each in linears.items()}}
write_model(arguments.model, arguments.out, weights)
bits = arguments.bits + 0.5
write_result(arguments.out, bits_per_weight=bits, seconds=1.5, device="cpu", versions={{"a": "1"}})
"""


@pytest.fixture
def setting(study_model: Path, texts: dict[str, Path], tmp_path: Path) -> Setting:
    work = tmp_path / "work"
    work.mkdir()
    peer = tmp_path / "peer.py"
    peer.write_text(PEER.format(folder=str(SCRIPTS / "peers")))
    interpreter = tmp_path / "python"
    # Any script that it is asked for is the one above.
    interpreter.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} {peer} "$@"\n')
    interpreter.chmod(0o755)
    return Setting(
        model=study_model,
        work=work,
        calibration=texts["own"],
        samples=4,
        length=64,
        seed=0,
        group_size=64,
        steps=7,
        device="cpu",
        peer_python=interpreter,
    )


def test_rows_are_measured_once_and_kept(
    setting: Setting, texts: dict[str, Path], tmp_path: Path
) -> None:
    results, notes = tmp_path / "results", []
    results.mkdir()
    scoring = Scoring(texts["held_out"], 64, 64, 200)
    names = ("rtn-4", "refined-4", "autoround-3", "bundle-level0-head16")
    wanted = chosen(names)
    assert run_rows(wanted, setting, scoring, results, notes.append) == []
    found = {row.name: row for row in collect([results]).rows}
    assert sorted(found) == sorted(names)
    assert found["refined-4"].divergence.kl.mean < found["rtn-4"].divergence.kl.mean
    assert found["rtn-4"].made.calibration is None
    ours, theirs = (found[name].made.calibration for name in ("refined-4", "autoround-3"))
    assert ours is not None and theirs is not None and ours.sha256 == theirs.sha256
    assert found["rtn-4"].made.bits_per_weight == 4 + 20 / 64
    assert (found["autoround-3"].made.bits_per_weight, found["autoround-3"].made.seconds) == (
        3.5,
        1.5,
    )
    bundle, checkpoint = (found[n].divergence for n in ("bundle-level0-head16", "refined-4"))
    assert bundle.model.kind == "bundle"
    assert bundle.kl.mean == pytest.approx(checkpoint.kl.mean, rel=0.01)
    before = {path: path.read_bytes() for path in results.iterdir()}
    assert run_rows(wanted, setting, scoring, results, notes.append) == []
    assert notes[-1].endswith("is there")
    assert {path: path.read_bytes() for path in results.iterdir()} == before
    table = table_of(collect([results]))
    assert [row[0] for row in table.rows][-1] == "AutoRound"  # 3.5 bits, behind those of 4
    assert f"| {found['rtn-4'].divergence.kl.mean:.4f} ± " in table.markdown()


def test_a_peer_that_fails_leaves_the_others_alone(
    setting: Setting, texts: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such module >&2\nexit 3\n")
    broken.chmod(0o755)
    results, notes = tmp_path / "results", []
    results.mkdir()
    failed = run_rows(
        chosen(["autoround-4", "q4_k", "rtn-4"]),
        replace(setting, peer_python=broken),
        Scoring(texts["held_out"], 64, 64, 100),
        results,
        notes.append,
    )
    assert sorted(failed) == ["autoround-4", "q4_k"]
    assert [path.name for path in results.iterdir()] == ["rtn-4.json"]
    assert any("ended with 3" in each and "no such module" in each for each in notes)
    with pytest.raises(ConfigError, match="give --peer-python"):
        make("q4_k", rows()["q4_k"], replace(setting, peer_python=None))


def test_rows_are_chosen_by_patterns() -> None:
    assert list(chosen(["autoround-*"])) == ["autoround-4", "autoround-3", "autoround-2"]
    assert chosen([]) == rows()
    with pytest.raises(ConfigError, match="no row is called autoround-5; there are rtn-4"):
        chosen(["autoround-5"])


def test_a_linear_left_in_16_bits_counts_as_such(study_model: Path) -> None:
    assert bits_per_weight(study_model) == 16


def test_no_results_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no measured rows"):
        collect([tmp_path])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"other\.json"):
        collect([tmp_path])
