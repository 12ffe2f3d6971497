"""The contract as the tables of docs/plugin.md.

python -m tests.tensorrt.contract_tables      prints them
"""

from __future__ import annotations

from awq_edge.tensorrt.contract import OPS
from awq_edge.tensorrt.op_contract import Attribute, Op, Tensor, number


def tables(op: Op) -> list[str]:
    """The lines of an operator's section."""
    return [
        f"`{op.name}`: {op.meaning}.",
        "",
        "| attribute | type | values | default | |",
        "| --- | --- | --- | --- | --- |",
        *(_attribute(attribute) for attribute in op.attributes),
        "",
        "| input | dtype | shape | there if | |",
        "| --- | --- | --- | --- | --- |",
        *(_tensor(tensor, tensor.meaning) for tensor in op.inputs),
        "",
        "| output | dtype | shape | there if | |",
        "| --- | --- | --- | --- | --- |",
        *(_tensor(tensor, _alias(tensor)) for tensor in op.outputs),
    ]


def _attribute(attribute: Attribute) -> str:
    if attribute.choices:
        values = ", ".join(map(str, attribute.choices))
    else:
        assert attribute.minimum is not None and attribute.maximum is not None
        values = f"{number(attribute.minimum)} to {number(attribute.maximum)}"
    default = "required" if attribute.default is None else number(attribute.default)
    return f"| `{attribute.name}` | {attribute.type} | {values} | {default} | {attribute.meaning} |"


def _tensor(tensor: Tensor, meaning: str) -> str:
    needs = f"`{tensor.needs}`" if tensor.needs else "always"
    if tensor.needs.startswith("!"):
        needs = f"not `{tensor.needs[1:]}`"
    shape = ", ".join(tensor.shape)
    return f"| `{tensor.name}` | {tensor.dtype} | [{shape}] | {needs} | {meaning} |"


def _alias(tensor: Tensor) -> str:
    return f"may be the memory of `{tensor.alias}`" if tensor.alias else tensor.meaning


if __name__ == "__main__":
    print("\n\n".join("\n".join(tables(op)) for op in OPS.values()))
