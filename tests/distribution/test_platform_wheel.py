"""The platform wheel carries the kernel library under a tag that is true of it."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

from awq_edge.tensorrt.cpp_tables import cpp_tables
from tests.kernels.fake_library import FakeLibrary

from .conftest import ROOT, BareEnvironment

LIBRARY = "awq_edge/kernels/lib/libawq_edge_kernels.so"
NEEDS_GLIBC = """
  Machine:                           Advanced Micro Devices X86-64
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x0000000000000001 (NEEDED)             Shared library: [ld-linux-x86-64.so.2]
  0x0010:   Name: GLIBC_2.9  Flags: none  Version: 4
  0x0020:   Name: GLIBC_2.34  Flags: none  Version: 3
  0x0030:   Name: GLIBC_2.2.5  Flags: none  Version: 2
"""


def _tag_of() -> Any:
    return runpy.run_path(str(ROOT / "scripts" / "platform_tag.py"))["tag_of"]


def test_tag_is_the_newest_glibc_that_is_asked_for() -> None:
    assert _tag_of()(NEEDS_GLIBC) == "manylinux_2_34_x86_64"
    arm = NEEDS_GLIBC.replace("Advanced Micro Devices X86-64", "AArch64")
    assert _tag_of()(arm) == "manylinux_2_34_aarch64"


@pytest.mark.parametrize("name", ["libstdc++.so.6", "libcudart.so.13", "libcrypt.so.1"])
def test_tag_promises_nothing_for_a_library_that_needs_more(name: str) -> None:
    more = f"{NEEDS_GLIBC} 0x01 (NEEDED)  Shared library: [{name}]\n"
    assert _tag_of()(more) == "linux_x86_64"
    without = "\n".join(line for line in NEEDS_GLIBC.splitlines() if "GLIBC_" not in line)
    assert _tag_of()(without) == "linux_x86_64"


@pytest.fixture(scope="module")
def platform_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As scripts/build_wheel makes it, around a library that a C compiler made."""
    for tool in ("gcc", "readelf"):
        if shutil.which(tool) is None:
            pytest.skip(reason=f"needs {tool}")
    folder = tmp_path_factory.mktemp("platform-wheel")
    library = FakeLibrary().build("gcc", folder / "libawq_edge_kernels.so")
    tag = subprocess.run(
        [sys.executable, ROOT / "scripts" / "platform_tag.py", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    environment = {
        **os.environ,
        "AWQ_EDGE_WHEEL_KERNELS": str(library),
        "AWQ_EDGE_WHEEL_PLATFORM": tag,
    }
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    command += ["--directory", str(folder / "dist")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def test_platform_wheel_is_tagged_and_fits_this_machine(platform_wheel: Path) -> None:
    _, _, _, tags = parse_wheel_filename(platform_wheel.name)
    assert tags & set(sys_tags())
    assert all(tag.interpreter == "py3" and tag.platform != "any" for tag in tags)
    with zipfile.ZipFile(platform_wheel) as archive:
        (info,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        assert b"Root-Is-Purelib: false" in archive.read(info)
        assert LIBRARY in archive.namelist()


def test_library_and_sources_are_found_in_an_installed_wheel(
    platform_wheel: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run(
        [*install, "--no-index", "--no-deps", str(platform_wheel)], check=True, capture_output=True
    )
    script = (
        "from awq_edge.kernels.kernels import load_kernels\n"
        "library = load_kernels()\n"
        "print(library.path)\n"
        "print(library.path.parents[1] / 'cuda_sources' / 'CMakeLists.txt')\n"
    )
    hidden = {"AWQ_EDGE_CACHE": str(tmp_path / "cache"), "PATH": os.environ["PATH"]}
    result = subprocess.run(
        [python, "-c", script],
        cwd=tmp_path,
        env=hidden,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    library, sources = map(Path, result.stdout.splitlines())
    (site,) = environment.glob("lib/python*/site-packages")
    assert library == site / LIBRARY
    assert sources.read_bytes() == (ROOT / "plugins" / "CMakeLists.txt").read_bytes()
    # As its CMakeLists.txt calls it; the packages that awq-edge requires are not there.
    tables = tmp_path / "contract.cpp"
    command = [python, "-m", "awq_edge.tensorrt.cpp_tables", tables]
    subprocess.run(command, cwd=tmp_path, env=hidden, check=True)
    assert tables.read_text() == cpp_tables()


def test_pure_wheel_builds_from_the_sources_that_it_carries(
    bare: BareEnvironment, tmp_path: Path
) -> None:
    script = "from awq_edge.kernels.header import sources_directory; print(sources_directory())"
    result = bare.run("python", "-c", script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip())
    assert folder.is_relative_to(bare.bin.parent) and folder.name == "cuda_sources"
    assert (folder / "kernels" / "norm.cu").is_file()
    lookup = (
        "import os\n"
        "os.environ['AWQ_EDGE_CACHE'] = 'no-cache'\n"
        "os.environ.pop('AWQ_EDGE_KERNELS', None)\n"
        "from awq_edge.kernels.kernels import load_kernels\n"
        "load_kernels()\n"
    )
    missing = bare.run("python", "-c", lookup, cwd=tmp_path)
    assert "awq-edge build-plugins" in missing.stderr
