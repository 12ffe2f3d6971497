"""The contract's tables in C++: contract.cpp of the TensorRT plugin, for CMake.

    python -m awq_edge.tensorrt.cpp_tables OUT

The text depends on contract.py alone: the same sources give the same bytes. It needs Python's
standard library and nothing else, and the compiled plugin needs no Python.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from awq_edge.tensorrt.contract import OPS, PLUGIN_NAMESPACE, PLUGIN_VERSION
from awq_edge.tensorrt.op_contract import Attribute, Op, Tensor

_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "/", ast.Mod: "%"}
_COMPARISON = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_BOOLEAN = {ast.And: "&&", ast.Or: "||"}


def cpp_tables() -> str:
    """The C++ source that defines what plugins/tensorrt/contract.h declares."""
    lines = [
        "// Made by awq_edge/tensorrt/cpp_tables.py from contract.py beside it; do not edit.",
        '#include "contract.h"',
        "",
        "namespace awq_edge::plugin {",
        "",
        f"const char* const kVersion = {_quoted(PLUGIN_VERSION)};",
        f"const char* const kNamespace = {_quoted(PLUGIN_NAMESPACE)};",
    ]
    for op in OPS.values():
        lines += ["", *_op(op)]
    return "\n".join([*lines, "", "}  // namespace awq_edge::plugin", ""])


def cpp_expression(expression: str) -> str:
    """An expression of the contract in C++; ValueError for one that is not of its language."""
    return _translated(ast.parse(expression, mode="eval").body)


def _translated(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return str(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        operator = _BINARY[type(node.op)]
        return f"({_translated(node.left)} {operator} {_translated(node.right)})"
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISON:
        operator = _COMPARISON[type(node.ops[0])]
        return f"({_translated(node.left)} {operator} {_translated(node.comparators[0])})"
    if isinstance(node, ast.BoolOp):
        return f"({f' {_BOOLEAN[type(node.op)]} '.join(map(_translated, node.values))})"
    if isinstance(node, ast.IfExp):
        parts = map(_translated, (node.test, node.body, node.orelse))
        return "({} ? {} : {})".format(*parts)
    raise ValueError(f"{ast.unparse(node)} is no expression of the contract")


def _op(op: Op) -> list[str]:
    name = re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", op.name).lower()
    expressions = op.expressions()
    conflicts = [
        f"  if {cpp_expression(each.condition)} return {_message(each.message)};"
        for each in op.conflicts
    ]
    messages = " ".join(each.message for each in op.conflicts)
    used = [*(each.condition for each in op.conflicts), *re.findall(r"{(\w+)}", messages)]
    return [
        f"static Dimensions {name}_dimensions(const Values& values) {{",
        *_integers(expressions.values()),
        "  return {",
        *(f"      {{{_quoted(k)}, {cpp_expression(text)}}}," for k, text in expressions.items()),
        "  };",
        "}",
        "",
        f"static std::string {name}_conflict(const Values& values) {{",
        *_integers(used),
        *conflicts,
        '  return "";',
        "}",
        "",
        f"const Op& {name}() {{",
        "  static const Op op{",
        f"      {_quoted(op.name)},",
        *_braced(map(_attribute, op.attributes)),
        *_braced(map(_tensor, op.inputs)),
        *_braced(map(_tensor, op.outputs)),
        f"      {name}_dimensions,",
        f"      {name}_conflict,",
        *_braced(f"{{{_quoted(a)}, {_quoted(b)}}}" for a, b in op.at_least),
        "  };",
        "  return op;",
        "}",
    ]


def _integers(expressions: Iterable[str]) -> list[str]:
    """The attributes that expressions name, as variables."""
    trees = (ast.walk(ast.parse(text, mode="eval")) for text in expressions)
    names = {node.id for tree in trees for node in tree if isinstance(node, ast.Name)}
    return [f"  const int64_t {each} = values.integer({_quoted(each)});" for each in sorted(names)]


def _attribute(attribute: Attribute) -> str:
    kind = {"int": "Number::kInt", "float": "Number::kFloat"}[attribute.type]
    required = "true" if attribute.default is None else "false"
    choices = ", ".join(map(str, attribute.choices))
    numbers = (attribute.default, attribute.minimum, attribute.maximum)
    default, minimum, maximum = (repr(float(each or 0)) for each in numbers)
    return (
        f"{{{_quoted(attribute.name)}, {kind}, {required}, {default}, {{{choices}}}, "
        f"{minimum}, {maximum}}}"
    )


def _tensor(tensor: Tensor) -> str:
    shape = ", ".join(map(_quoted, tensor.shape))
    words = ", ".join(map(_quoted, (tensor.needs, tensor.alias)))
    return f"{{{_quoted(tensor.name)}, {_quoted(tensor.dtype)}, {{{shape}}}, {words}}}"


def _message(message: str) -> str:
    """A message with {attribute}s as a sum of strings."""
    words = re.split(r"{(\w+)}", message)
    terms = [
        f"std::to_string({word})" if at % 2 else _quoted(word) for at, word in enumerate(words)
    ]
    return " + ".join(term for term in terms if term != '""')


def _braced(items: Iterable[str]) -> list[str]:
    return ["      {", *(f"          {item}," for item in items), "      },"]


def _quoted(text: str) -> str:
    return json.dumps(text)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(cpp_tables(), encoding="utf-8")
