"""A wheel of this tree, and an environment that has it with the base dependencies and no more.

The bare environment takes the dependencies from the one that runs the tests: the closure of the
wheel's own base requirements is linked into it, file by file. So it needs no network, and a
requirement that the wheel does not declare is not there, as on a device.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class BareEnvironment:
    """bin: folder of its interpreter and console scripts. packages: what was linked into it."""

    bin: Path
    packages: frozenset[str]

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run `bin/command[0]` away from the source tree, without this process's PYTHON*."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment["OMP_NUM_THREADS"] = "1"
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a release of this tree would be."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*command, "--directory", str(out)], cwd=ROOT, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> BareEnvironment:
    """The wheel, installed with its base requirements only."""
    directory = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    python = directory / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = directory.glob("lib/python*/site-packages")
    links = directory / "dependencies"
    links.mkdir()
    distributions = list(_closure(importlib.metadata.PathDistribution.at(next(_infos(site)))))
    for distribution in distributions:
        _link(distribution, links)
    (site / "dependencies.pth").write_text(f"{links}\n")
    check = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr
    names = frozenset(canonicalize_name(d.metadata["Name"]) for d in distributions)
    return BareEnvironment(directory / "bin", names)


def _infos(site: Path) -> Iterator[Path]:
    return site.glob("awq_edge-*.dist-info")


def _closure(root: importlib.metadata.Distribution) -> Iterator[importlib.metadata.Distribution]:
    """The distributions that `root` requires without extras, and what those require."""
    seen: set[tuple[str, frozenset[str]]] = set()
    pending: list[tuple[importlib.metadata.Distribution, frozenset[str]]] = [(root, frozenset())]
    while pending:
        distribution, extras = pending.pop()
        for text in distribution.requires or []:
            requirement = Requirement(text)
            environments = [{"extra": extra} for extra in (*extras, "")]
            if requirement.marker and not any(map(requirement.marker.evaluate, environments)):
                continue
            key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if key in seen:
                continue
            seen.add(key)
            found = importlib.metadata.distribution(requirement.name)
            yield found
            pending.append((found, key[1]))


def _link(distribution: importlib.metadata.Distribution, links: Path) -> None:
    """Link every top-level file and folder of a distribution, but its scripts and .pth files."""
    for file in distribution.files or []:
        top = file.parts[0]
        if top in ("..", "__pycache__") or top.endswith(".pth"):
            continue
        target = Path(str(distribution.locate_file(top)))
        link = links / top
        if not link.exists():
            link.symlink_to(target.resolve())
