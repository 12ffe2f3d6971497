"""Machines as their files, programs and packages describe them, and what doctor says of each.

facts/<machine>.toml: `about` says which machine it is and where its facts are from; [expect] has
the recipe, a part of the reason, and every fix that is printed for what is missing or a warning, by
check: one that is not listed fails.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from awq_edge.doctor.machine import GpuFacts, PythonFacts
from awq_edge.doctor.run import examine

from .machines import GIB, JETSON_VENV, VENV, Fake

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FACTS = {path.stem: path for path in sorted((Path(__file__).parent / "facts").glob("*.toml"))}
PYTHONS = {
    "venv": VENV,
    "venv of the system": JETSON_VENV,
    "system": PythonFacts("3.12.3", "/usr/bin/python3", "/usr", False, True, False, True, True),
    "pyenv": PythonFacts(
        "3.11.9", "/home/me/.pyenv/versions/3.11.9/bin/python3", "/home/me/.pyenv/versions/3.11.9",
        False, True, False, False, True,
    ),
    "conda": PythonFacts(
        "3.12.8", "/home/me/miniforge3/bin/python", "/home/me/miniforge3",
        False, True, True, False, True,
    ),
    "uv": PythonFacts(
        "3.12.8", "/home/me/my work/.venv/bin/python",
        "/home/me/.local/share/uv/python/cpython-3.12.8-linux-x86_64-gnu",
        True, False, False, False, False,
    ),
    "container": PythonFacts(
        "3.10.12", "/usr/bin/python3", "/usr", False, True, False, False, True
    ),
    "too new": replace(VENV, version="3.14.0"),
}  # fmt: skip


def machine_of(root: Path, facts: dict[str, Any]) -> Fake:
    user, gpu = facts.get("user", {}), facts.get("gpu")
    return Fake(
        root,
        files=facts.get("files", {}),
        links=facts.get("links", {}),
        commands=facts.get("commands", {}),
        environment=facts.get("environment", {}),
        versions=facts.get("packages", {}),
        modules=set(facts.get("modules", ())) | {"ensurepip"} - set(facts.get("no_modules", ())),
        gpu=None if gpu is None else GpuFacts(**gpu),
        cuda_status=facts.get("cuda_status"),
        compiler=None if facts.get("tools") else "nvcc 12.6 (/usr/local/cuda/bin/nvcc)",
        tools=tuple(facts.get("tools", ())),
        architectures=tuple(facts["kernels"]) if "kernels" in facts else None,
        disk=facts.get("disk_gib", 200) * GIB,
        python=PYTHONS[facts["python"]],
        system=facts["system"],
        is_root=user.get("root", False),
        may_sudo=user.get("sudo", True),
        closed=frozenset(facts.get("closed", ())),
    )


@pytest.mark.parametrize("name", FACTS)
def test_what_doctor_says_of(name: str, tmp_path: Path) -> None:
    facts = tomllib.loads(FACTS[name].read_text(encoding="utf-8"))
    expect = facts["expect"]
    report = examine(machine_of(tmp_path, facts).machine(), expect.get("asked"))
    assert facts["about"]
    assert not [row for row in report.rows if row.status == "failed"]
    assert report.recipe == expect["recipe"]
    assert expect["reason"] in report.recipe_reason
    assert report.ready is expect["ready"]
    needed = {row.check: row.fix for row in report.rows if row.fix and row.status != "optional"}
    assert needed == expect.get("fixes", {})
    optional = {row.check: row.fix for row in report.rows if row.fix and row.status == "optional"}
    assert optional.items() >= expect.get("optional", {}).items()
    for check, words in expect.get("found", {}).items():
        (row,) = [each for each in report.rows if each.check == check]
        assert words in row.found


@pytest.mark.parametrize("name", FACTS)
def test_no_fix_contradicts_the_machine(name: str, tmp_path: Path) -> None:
    """Rules that hold for whatever is printed."""
    facts = tomllib.loads(FACTS[name].read_text(encoding="utf-8"))
    fake = machine_of(tmp_path, facts)
    report = examine(fake.machine(), facts["expect"].get("asked"))
    text = {row.check: row.fix for row in report.rows}
    in_container = ".dockerenv" in facts.get("files", {})
    for check, fix in text.items():
        if fake.is_root and "container's host" not in fix:
            assert "sudo" not in fix, check
        if not fake.is_root and not fake.may_sudo and "sudo" in fix:
            assert "ask who administers this machine" in fix or "container's host" in fix, check
        if in_container:
            assert "nvidia-jetpack" not in fix or "on the board" in fix, check
            assert "reboot" not in fix or "host" in fix or "board" in fix, check
        if "microsoft" in facts.get("files", {}).get("proc/sys/kernel/osrelease", "").lower():
            assert "ubuntu-drivers" not in fix and "reboot" not in fix, check
        if fake.gpu is not None and fake.gpu.cuda is not None:
            major = int(fake.gpu.cuda.partition(".")[0])
            assert not any(f"cuda-python=={n}" in fix for n in range(major + 1, 20)), check
        if fake.python.managed:
            assert not fix.startswith(f"{fake.python.executable} -m pip"), check
