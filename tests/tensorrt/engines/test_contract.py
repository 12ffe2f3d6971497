"""A bundle for another plugin is refused before TensorRT sees it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import RuntimeUnavailableError
from awq_edge.kernels.kernels import ENVIRONMENT_VARIABLE
from awq_edge.tensorrt.builder import build_engines
from awq_edge.tensorrt.engines import PluginContract, check_contract, register_plugins
from tests.tensorrt.engine_bundles import edit_manifest


def changed(bundle: Bundle, **changes: Any) -> Bundle:
    assert bundle.manifest.plugin is not None
    return edit_manifest(bundle, plugin=bundle.manifest.plugin.model_dump(mode="json") | changes)


def with_attribute(bundle: Bundle, op: str, name: str, values: list[float] | None) -> Bundle:
    assert bundle.manifest.plugin is not None
    attributes = bundle.manifest.plugin.model_dump(mode="json")["attributes"]
    if values is None:
        del attributes[op][name]
    else:
        attributes[op][name] = values
    return changed(bundle, attributes=attributes)


def test_exported_bundle_passes(bundle: Bundle) -> None:
    used = bundle.manifest.plugin
    assert used is not None
    assert set(used.attributes) == set(used.ops) == {"CachedAttention", "W4A16Linear"}
    assert used.attributes["W4A16Linear"]["bits"] == (4,)
    check_contract(bundle)


CASES = {
    "version": ({"version": "2"}, "its version is 2, here it is 1"),
    "layout": ({"layout_version": 9}, "its layout_version is 9, here it is 1"),
    "operator": (
        {"ops": ["PagedAttention"]},
        "it has an operator PagedAttention, the plugin here has W4A16Linear and CachedAttention",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_other_contracts_are_refused(bundle: Bundle, name: str) -> None:
    changes, said = CASES[name]
    with pytest.raises(RuntimeUnavailableError) as error:
        check_contract(changed(bundle, **changes))
    assert f"for another plugin: {said}; export the model again" in str(error.value)


def test_value_out_of_range_is_refused(bundle: Bundle) -> None:
    with pytest.raises(RuntimeUnavailableError, match="W4A16Linear: bits is 5, must be 3, 4 or 8"):
        check_contract(with_attribute(bundle, "W4A16Linear", "bits", [4, 5]))


def test_unknown_attribute_is_refused(bundle: Bundle) -> None:
    """TensorRT's parser would drop it without a word."""
    other = with_attribute(bundle, "CachedAttention", "sinks", [1])
    with pytest.raises(RuntimeUnavailableError, match="an attribute sinks that the plugin here"):
        check_contract(other)


def test_missing_attribute_is_refused(bundle: Bundle) -> None:
    other = with_attribute(bundle, "CachedAttention", "scale", None)
    with pytest.raises(RuntimeUnavailableError, match="the attribute scale is missing"):
        check_contract(other)


def test_build_refuses_before_it_loads_tensorrt(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeUnavailableError, match="for another plugin: its version is 2"):
        list(build_engines(changed(bundle, version="2"), targets=["SM89"]))


def test_missing_plugin_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.tensorrt.stub_tensorrt import make_module

    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "none.so"))
    contract = PluginContract(
        plugin_version="1", layout_version=1, abi_version=1, library_sha256="0" * 64
    )
    with pytest.raises(RuntimeUnavailableError) as error:
        register_plugins(contract, make_module())
    assert "the engine needs the plugins W4A16Linear and CachedAttention" in str(error.value)
    assert "no such file; build it on this machine with `awq-edge build-plugins`" in str(
        error.value
    )
    register_plugins(None, make_module())  # an engine without plugin nodes asks for nothing
