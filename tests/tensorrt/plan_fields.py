"""The plugin fields inside a serialized TensorRT-RTX engine.

Reading an engine back takes a GPU; its fields can be seen without one. A field is stored as its
name, the number of values, the name of its type and the values; strings and values with their
length as 64 bits in front. (Seen in TensorRT-RTX 1.7.1; the format is not documented.)
"""

from __future__ import annotations

import re
import struct

from awq_edge.tensorrt.op_contract import Number, Op

_LENGTH = 8
# Between a string and what follows, and between the type and the bytes of the values.
_GAP, _MARK = 64, 6
_FORMATS = {b"INT32": "<i", b"FP32": "<f"}


def fields_of(plan: bytes, op: Op) -> list[dict[str, Number]]:
    """Field name -> value of every node of `op`, in the engine's order."""
    columns = {
        attribute.name: _values(plan, attribute.name.encode()) for attribute in op.attributes
    }
    counts = {len(values) for values in columns.values()}
    assert len(counts) == 1, f"fields are there {counts} times"
    return [
        {name: values[node] for name, values in columns.items()} for node in range(counts.pop())
    ]


def _values(plan: bytes, name: bytes) -> list[Number]:
    pattern = re.compile(
        re.escape(struct.pack("<Q", len(name)) + name)
        + rb".{1,%d}?(INT32|FP32).{%d}" % (_GAP, _MARK),
        re.DOTALL,
    )
    found: list[Number] = []
    for match in pattern.finditer(plan):
        (length,) = struct.unpack_from("<Q", plan, match.end())
        form = _FORMATS[match[1]]
        assert length == struct.calcsize(form), f"{name.decode()} has {length} bytes"
        found.append(struct.unpack_from(form, plan, match.end() + _LENGTH)[0])
    return found
