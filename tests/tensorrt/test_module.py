"""TensorRT is found under both names, and TensorRT-RTX's parser finds its library."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from awq_edge.errors import RuntimeUnavailableError
from awq_edge.kernels.kernels import load_kernels
from awq_edge.tensorrt import module as tensorrt_module
from awq_edge.tensorrt import plugin as tensorrt_plugin
from awq_edge.tensorrt.contract import OPS, PLUGIN_VERSION

from . import stub_tensorrt


def _install(folder: Path, name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of this name and version that can be imported."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(f'__version__ = "{version}"\n')
    monkeypatch.syspath_prepend(str(folder))
    # Set first: what the test imports is then undone too, where nothing was before.
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def find(name: str) -> Any:
        spec = found(name)
        hidden = (
            name.startswith("tensorrt")
            and spec is not None
            and "site-packages" in (spec.origin or "")
        )
        return None if hidden else spec

    monkeypatch.setattr(tensorrt_module.importlib.util, "find_spec", find)


@pytest.mark.usefixtures("nothing_installed")
def test_what_is_missing_or_too_old_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeUnavailableError, match="TensorRT is not installed; JetPack comes"):
        tensorrt_module.load_tensorrt()
    with pytest.raises(RuntimeUnavailableError, match=r"tensorrt_rtx is not installed.*\[rtx\]"):
        tensorrt_module.load_tensorrt("tensorrt_rtx")
    _install(tmp_path, "tensorrt", "8.6.1", monkeypatch)
    with pytest.raises(RuntimeUnavailableError, match=r"is 8\.6\.1, the plugin needs 10\.3 or"):
        tensorrt_module.load_tensorrt()


@pytest.mark.usefixtures("nothing_installed")
def test_the_module_that_is_imported_already_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, "tensorrt", "10.3.0", monkeypatch)
    _install(tmp_path, "tensorrt_rtx", "1.7.1", monkeypatch)
    assert tensorrt_module.load_tensorrt().__name__ == "tensorrt"
    monkeypatch.delitem(sys.modules, "tensorrt")
    assert tensorrt_module.load_tensorrt("tensorrt_rtx").__name__ == "tensorrt_rtx"
    assert tensorrt_module.load_tensorrt().__name__ == "tensorrt_rtx"


def test_rtx_imported_too_early_is_refused_before_it_can_end_the_process(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip(reason="needs tensorrt-rtx, which has wheels for Linux on x86-64 and Windows")
    script = (
        "import {first}\n"
        "from awq_edge.tensorrt.module import load_tensorrt\n"
        "print(load_tensorrt('tensorrt_rtx').__version__)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "AWQ_EDGE_CACHE": str(tmp_path)}
    for first, status, output in (
        ("tensorrt_rtx", 1, "call awq_edge.tensorrt.module.load_tensorrt() instead"),
        ("sys", 0, "1."),
        ("sys", 0, "1."),  # the links are there now
    ):
        done = subprocess.run(
            [sys.executable, "-c", script.format(first=first)],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == status, done.stderr
        assert output in done.stdout + done.stderr
    links = {link.name: link.resolve().name for link in tmp_path.rglob("*.so*")}
    assert links["libtensorrt_rtx.so"] == "libtensorrt_rtx.so.1"


def test_a_link_to_another_installation_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "links" / "libtensorrt_rtx.so"
    for target in (tmp_path / "old", tmp_path / "new", tmp_path / "new"):
        tensorrt_module._link(link, target)
        assert link.readlink() == target
    assert [file.name for file in link.parent.iterdir()] == [link.name]


def test_registering_twice_changes_nothing(
    recording_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awq_edge.kernels.kernels.compute_capability", lambda device: None)
    module = stub_tensorrt.make_module()
    tensorrt_plugin.register(module, load_kernels(recording_kernels))
    before = dict(module.get_plugin_registry().creators)
    assert [key[0] for key in before] == list(OPS)
    # No kernels are needed, or looked for, when both operators are known.
    monkeypatch.setenv("AWQ_EDGE_KERNELS", "/no/such/file")
    tensorrt_plugin.register(module)
    assert module.get_plugin_registry().creators == before


def test_a_foreign_plugin_of_the_same_name_is_refused(recording_kernels: Path) -> None:
    module: ModuleType = stub_tensorrt.make_module()
    foreign = SimpleNamespace(
        name="W4A16Linear",
        plugin_version=PLUGIN_VERSION,
        plugin_namespace="",
        field_names=[SimpleNamespace(name="bits"), SimpleNamespace(name="groups")],
    )
    module.get_plugin_registry().register_creator(foreign, "")
    with pytest.raises(RuntimeUnavailableError, match="with the fields bits, groups; it is not"):
        tensorrt_plugin.register(module)
