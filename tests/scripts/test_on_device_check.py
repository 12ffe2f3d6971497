"""scripts/on_device_check: one JSON of what this machine is and did, also where steps fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def check(bundle: Path, out: Path) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "scripts" / "on_device_check", bundle),
            *("--json", out, "--repeats", "1", "--max-new-tokens", "4"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text())


def test_a_run_is_reported(tiny_bundle: Path, tmp_path: Path) -> None:
    code, result = check(tiny_bundle, tmp_path / "check.json")
    assert code == 0
    assert result["format"] == "awq-edge-device-check"
    run, bench = result["steps"]
    assert (run["name"], run["exit_code"]) == ("run", 0)
    assert (bench["name"], bench["exit_code"]) == ("bench", 0)
    assert bench["report"]["format"] == "awq-edge-bench-report"
    assert bench["report"]["plan"]["generated_lengths"] == [4]
    assert len(run["report"]["result"]["token_ids"]) == 4
    assert result["facts"]["python"]
    assert any(line.startswith("numpy") for line in result["facts"]["pip"])
    assert {path.name for path in tmp_path.iterdir()} == {"check.json"}


def test_failed_steps_are_told_in_their_own_words(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"runtime": "tensorrt"}))
    (bundle / manifest["weights"]).unlink()
    code, result = check(bundle, tmp_path / "check.json")
    assert code == 1
    assert [step["name"] for step in result["steps"]] == ["build", "run", "bench"]
    for step in result["steps"]:
        assert step["exit_code"] == 2
        assert f"{manifest['weights']} is missing" in step["stderr"]
        assert step["report"] is None
