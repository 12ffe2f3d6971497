"""A graph's use of the operators of this project's plugin: a machine without onnx is told by the
bundle's manifest."""

from __future__ import annotations

import onnx

from awq_edge.tensorrt.contract import DOMAIN

_NUMERIC = (onnx.AttributeProto.INT, onnx.AttributeProto.FLOAT)


def plugin_attributes(model: onnx.ModelProto) -> dict[str, dict[str, tuple[int | float, ...]]]:
    """Numeric attributes of the nodes of domain awq_edge: operator -> name -> values, ascending."""
    attributes: dict[str, dict[str, set[int | float]]] = {}
    for node in model.graph.node:
        if node.domain == DOMAIN:
            names = attributes.setdefault(node.op_type, {})
            for attribute in node.attribute:
                if attribute.type in _NUMERIC:
                    value = onnx.helper.get_attribute_value(attribute)
                    names.setdefault(attribute.name, set()).add(value)
    return {
        op: {name: tuple(sorted(values)) for name, values in sorted(attributes[op].items())}
        for op in sorted(attributes)
    }
