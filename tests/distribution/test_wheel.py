"""The wheel holds everything, declares what it needs, and works without the host packages."""

from __future__ import annotations

import zipfile
from pathlib import Path

from awq_edge._version import __version__

from .conftest import ROOT, BareEnvironment

HOST_PACKAGES = {"torch", "transformers", "onnx", "onnx-graphsurgeon", "ml-dtypes", "matplotlib"}


def _on_disk(folder: str) -> set[str]:
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def test_wheel_holds_the_package_the_recipes_and_the_licence(wheel: Path) -> None:
    info = f"awq_edge-{__version__}.dist-info"
    expected = _on_disk("awq_edge") | {f"awq_edge/{name}" for name in _on_disk("recipes")}
    sources = {name.removeprefix("plugins/") for name in _on_disk("plugins")}
    expected |= {f"awq_edge/kernels/cuda_sources/{name}" for name in sources}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        licence = archive.read(f"{info}/licenses/LICENSE")
    assert names - {name for name in names if name.startswith(info)} == expected
    assert "awq_edge/recipes/cpu.toml" in names
    assert "awq_edge/kernels/cuda_sources/kernels/norm.cu" in names
    assert wheel.name.endswith("-py3-none-any.whl")
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_wheel_holds_the_demo_model(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folder = "awq_edge/data/demo"
    wanted = {f"{folder}/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")}
    assert wanted <= names


def test_bare_environment_has_no_host_package(bare: BareEnvironment, tmp_path: Path) -> None:
    assert not bare.packages & HOST_PACKAGES
    for module in ("torch", "transformers", "onnx", "onnx_graphsurgeon", "ml_dtypes", "matplotlib"):
        result = bare.run("python", "-c", f"import {module}", cwd=tmp_path)
        assert f"No module named '{module}'" in result.stderr


def test_recipes_are_listed_from_the_wheel(bare: BareEnvironment, tmp_path: Path) -> None:
    result = bare.run("awq-edge", "recipes", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for recipe in (ROOT / "recipes").glob("[!_]*.toml"):
        assert f"{recipe.stem} " in result.stdout


def test_host_command_on_a_base_install_names_the_extra(
    bare: BareEnvironment, tmp_path: Path
) -> None:
    result = bare.run(
        "awq-edge", "quantize", "demo", "--recipe", "cpu", "--out", "checkpoint", cwd=tmp_path
    )
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "pip install 'awq-edge[host]'" in line
    assert list(tmp_path.iterdir()) == []
