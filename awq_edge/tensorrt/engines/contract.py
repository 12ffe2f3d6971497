"""The operators that a bundle or an engine was made with, compared with this version's plugin.

TensorRT's own answer would come late and say little: its parser drops attributes that a plugin does
not know without a word, and an engine of another contract fails where it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

from awq_edge.artifacts.directories import Bundle, PluginUse, hash_file
from awq_edge.errors import RuntimeUnavailableError
from awq_edge.kernels.interface import ABI_VERSION, LAYOUT_VERSION
from awq_edge.kernels.kernels import load_kernels
from awq_edge.tensorrt.contract import OPS, PLUGIN_VERSION
from awq_edge.tensorrt.engines.manifest import PluginContract
from awq_edge.tensorrt.op_contract import Op


def check_contract(bundle: Bundle) -> None:
    """Raise RuntimeUnavailableError for an operator, or attribute, that this plugin has not."""
    used = bundle.manifest.plugin
    problem = _refusal(used) if used is not None else ""
    if problem:
        raise RuntimeUnavailableError(
            f"{bundle.path} was exported by awq-edge {bundle.manifest.awq_edge_version} for "
            f"another plugin: {problem}; export the model again with this version, or install "
            "that one"
        )


def _refusal(used: PluginUse) -> str:
    """The first difference between the bundle's operators and the plugin's, or an empty string."""
    for name, theirs, here in (
        ("version", used.version, PLUGIN_VERSION),
        ("layout_version", str(used.layout_version), str(LAYOUT_VERSION)),
    ):
        if theirs != here:
            return f"its {name} is {theirs}, here it is {here}"
    for name in used.ops:
        if name not in OPS:
            return f"it has an operator {name}, the plugin here has {' and '.join(OPS)}"
    for name, attributes in used.attributes.items():
        problem = _attribute_refusal(OPS[name], attributes) if name in OPS else ""
        if problem:
            return f"{name}: {problem}"
    return ""


def _attribute_refusal(op: Op, attributes: Mapping[str, Sequence[int | float]]) -> str:
    known = {attribute.name: attribute for attribute in op.attributes}
    for name, values in attributes.items():
        if name not in known:
            return f"an attribute {name} that the plugin here does not know"
        for value in values:
            reason = known[name].refusal(value)
            if reason:
                return f"{name} is {value}, {reason}"
    required = [attribute.name for attribute in op.attributes if attribute.default is None]
    missing = [name for name in required if name not in attributes]
    return f"the attribute {missing[0]} is missing" if missing else ""


def plugin_contract() -> PluginContract:
    """The versions of this machine's plugin. Raises RuntimeUnavailableError without kernels."""
    return PluginContract(
        plugin_version=PLUGIN_VERSION,
        layout_version=LAYOUT_VERSION,
        abi_version=ABI_VERSION,
        library_sha256=hash_file(load_kernels().path).sha256,
    )


def register_plugins(plugin: PluginContract | None, tensorrt: ModuleType) -> None:
    """Make the operators known to TensorRT, before it reads an engine that has them.

    plugin: the engine's. Raises RuntimeUnavailableError where the plugin cannot be had.
    """
    if plugin is None:
        return
    from awq_edge.tensorrt.plugin import register

    try:
        register(tensorrt)
    except RuntimeUnavailableError as error:
        raise RuntimeUnavailableError(
            f"the engine needs the plugins {' and '.join(OPS)}, and they cannot be loaded: {error}"
        ) from None
