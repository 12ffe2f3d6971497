"""The operations of the cuda runtime: one entry each, which says what a call of it has to have, and
how it is launched.

To add one: an entry here, its kernel in plugins/, and its reference in NumPy in
tests/kernels/host_operations.py. An exporter that emits it needs no other word: what is not
in `OPERATIONS` is what the runtime lacks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from awq_edge.kernels.interface import (
    GROUP_SIZES,
    HEAD_SIZES,
    Activation,
    AttentionParameters,
    DenseWeight,
    Dtype,
    Epilogue,
    NormKind,
    NormParameters,
    Routing,
    Tactic,
    W4A16Weight,
)
from awq_edge.runtime.backends.cuda.operands import Operands, Tools

# Attributes of a call, and widths of its buffers by their roles.
Sizes = Mapping[str, int | float | str]
_VECTOR = 8  # activations that the kernels load at a time


class Launch(Protocol):
    """A call whose operands lie on the device."""

    def workspace_bytes(self, rows: int) -> int:
        """Workspace for up to `rows` rows."""
        ...

    def queue(self, rows: int, workspace: tuple[int, int]) -> None:
        """Queue it on the device's stream. workspace: address and bytes."""
        ...


@dataclass(frozen=True)
class Operation:
    """prepare: a call's operands to its launch. limits: what is wrong with sizes of an attribute or
    a width, by name; None where there is a kernel for them."""

    prepare: Callable[[Operands, Tools], Launch]
    limits: Callable[[Sizes], str | None] = lambda sizes: None


class _Plain:
    """A kernel without a workspace: its name, and its arguments around the number of rows."""

    def __init__(
        self, tools: Tools, name: str, before: tuple[Any, ...], after: tuple[Any, ...]
    ) -> None:
        self._tools, self._name, self._before, self._after = tools, name, before, after

    def workspace_bytes(self, rows: int) -> int:
        return 0

    def queue(self, rows: int, workspace: tuple[int, int]) -> None:
        self._tools.call(self._name, *self._before, rows, *self._after)


def _embedding(given: Operands, tools: Tools) -> Launch:
    """y[r] = table[ids[r]] * scale"""
    y = given.output("y")
    table = given.tensor("table", (tools.vocab_size, y.width))
    before = (given.address("ids"), table, y.address)
    after = (y.width, tools.vocab_size, given.number("scale"), tools.dtype)
    return _Plain(tools, "awq_edge_embedding", before, after)


def _add_positions(given: Operands, tools: Tools) -> Launch:
    """y[s] += table[past_length + s + offset], in place."""
    y, offset = given.output("y"), given.integer("offset")
    given.require(y == given.input("x"), "x is not changed in place")
    table, rows = given.table("table", y.width)
    given.require(rows > offset, "the table has no row at its offset")
    before = (table + offset * y.width * 2, given.address("past_length"), None, y.address, 1)
    after = (y.width, rows - offset, tools.dtype)
    return _Plain(tools, "awq_edge_add_positions", before, after)


def _gather_rows(given: Operands, tools: Tools) -> Launch:
    """y[i] = x[rows[i]]"""
    x, y = given.input("x"), given.output("y")
    given.require(x.width == y.width, "x and y differ in width")
    before = (x.address, given.address("rows"), y.address)
    return _Plain(tools, "awq_edge_gather_rows", before, (x.width, tools.dtype))


def _logits(given: Operands, tools: Tools) -> Launch:
    """y = x * scale, with a soft cap unless that is 0; float32."""
    x, y = given.input("x"), given.output("y", "float32")
    given.require(x.width == y.width, "x and y differ in width")
    factors = (given.number("scale"), given.number("soft_cap"))
    after = (x.width, *factors, tools.dtype, Dtype.FLOAT32)
    return _Plain(tools, "awq_edge_logits", (x.address, y.address), after)


class _Activation:
    """y = f(gate) * up, or f(gate)."""

    def __init__(self, activation: Activation, given: Operands, tools: Tools) -> None:
        self._tools = tools
        gate, up, self._y = given.input("gate"), given.optional_input("up"), given.output("y")
        given.require(gate.width == self._y.width, "gate and y differ in width")
        if up is not None:
            same = (up.width, up.stride) == (gate.width, gate.stride)
            given.require(same, "gate and up differ in width or stride")
        self._gate, self._up = gate.address, None if up is None else up.address
        self._stride, self._activation = gate.stride, activation

    def workspace_bytes(self, rows: int) -> int:
        return 0

    def queue(self, rows: int, workspace: tuple[int, int]) -> None:
        self._tools.call(
            "awq_edge_activation",
            self._gate,
            self._up,
            self._y.address,
            rows,
            self._y.width,
            self._stride,
            self._activation,
            self._tools.dtype,
        )


class _Norm:
    """residual += residual_scale * (norm of) x, in place, where there is one; y = norm of it, where
    there is a y."""

    def __init__(self, kind: NormKind, given: Operands, tools: Tools) -> None:
        self._tools = tools
        x, y, residual = given.input("x"), given.optional_output("y"), None
        size = (x.width,)
        if given.has_input("residual"):
            residual = given.input("residual")
            given.require(residual == given.output("residual"), "the residual is not in place")
        for place in (y, residual):
            given.require(place is None or place.width == x.width, "widths differ")
        given.require(y is not None or residual is not None, "nothing is written")
        self._norm = NormParameters(
            kind=kind,
            dtype=tools.dtype,
            size=x.width,
            eps=given.number("eps"),
            residual_scale=given.number("residual_scale"),
            x=x.address,
            post_weight=given.optional_tensor("post_weight", size),
            post_bias=given.optional_tensor("post_bias", size),
            residual=None if residual is None else residual.address,
            weight=None if y is None else given.tensor("weight", size),
            bias=given.optional_tensor("bias", size),
            y=None if y is None else y.address,
        )

    def workspace_bytes(self, rows: int) -> int:
        return 0

    def queue(self, rows: int, workspace: tuple[int, int]) -> None:
        self._norm.rows = rows
        self._tools.call("awq_edge_normalize", self._norm)


def _weight(
    given: Operands,
    tools: Tools,
    sizes: tuple[int, int],
    epilogue: Epilogue,
    part: str = "",
    count: int = 1,
) -> W4A16Weight:
    """A packed weight among a call's inputs.

    sizes: in_features and out_features. part: before the names of its tensors and attributes.
    count: of such weights, one behind the other in each tensor.
    """
    k, n = sizes
    bits, group_size = given.integer(f"{part}bits"), given.integer(f"{part}group_size")
    given.require(group_size in GROUP_SIZES, f"group_size is {group_size}")
    tiles = count * (-(-(n // 2) // 8) if epilogue.paired else -(-n // 16))
    blocks = -(-k // 128)
    groups = blocks * 128 // group_size
    words = (tiles, groups, 4 if bits == 8 else 2)
    return W4A16Weight(
        bits=bits,
        group_size=group_size,
        in_features=k,
        out_features=n,
        dtype=tools.dtype,
        epilogue=epilogue,
        qweight=given.tensor(f"{part}qweight", (tiles, blocks, 64 * bits), "int32"),
        scales=given.tensor(f"{part}scales", (tiles, groups, 8, 2), "float16"),
        zeros=given.optional_tensor(f"{part}zeros", words, "int32"),
        bias=given.optional_tensor(f"{part}bias", (n,)),
    )


def _epilogue(given: Operands) -> Epilogue:
    name = given.text("epilogue").upper()
    given.require(name in Epilogue.__members__, f"there is no epilogue {name.lower()}")
    return Epilogue[name]


class _W4A16Linear:
    """y = x W^T (+ bias), and its epilogue: "none", or a name of `Epilogue` in small letters."""

    def __init__(self, given: Operands, tools: Tools) -> None:
        self._tools = tools
        x, y = given.input("x"), given.output("y")
        self._x, self._y = x.address, y.address
        k, n, epilogue = *map(given.integer, ("in_features", "out_features")), _epilogue(given)
        width = n // 2 if epilogue.paired else n
        given.require(x.width == k and y.width == width, "widths differ")
        self._weight = _weight(given, tools, (k, n), epilogue)

    def workspace_bytes(self, rows: int) -> int:
        return self._tools.size("awq_edge_w4a16_workspace", self._weight, rows, Tactic.AUTO)

    def queue(self, rows: int, workspace: tuple[int, int]) -> None:
        self._tools.call(
            "awq_edge_w4a16_linear", self._weight, self._x, self._y, rows, Tactic.AUTO, *workspace
        )


class _RoutedExperts:
    """y = the sum over the chosen experts of share * down(f(gate(x)) * up(x))."""

    def __init__(self, given: Operands, tools: Tools) -> None:
        self._tools = tools
        x, y, scores = given.input("x"), given.output("y"), given.input("scores")
        experts, inner, epilogue = (
            *map(given.integer, ("num_experts", "inner_size")),
            _epilogue(given),
        )
        given.require(epilogue.paired, "its epilogue has no gate")
        given.require(x.width == y.width and scores.width == experts, "widths differ")
        self._places = (scores.address, x.address, y.address)
        self._gate_up = _weight(given, tools, (x.width, 2 * inner), epilogue, "gate_up.", experts)
        self._down = _weight(given, tools, (inner, x.width), Epilogue.NONE, "down.", experts)
        self._routing = Routing(
            num_experts=experts,
            top_k=given.integer("top_k"),
            normalize=given.integer("normalize"),
        )

    def workspace_bytes(self, rows: int) -> int:
        weights = (self._gate_up, self._down, self._routing)
        return self._tools.size("awq_edge_experts_workspace", *weights, rows)

    def queue(self, rows: int, workspace: tuple[int, int]) -> None:
        weights = (self._gate_up, self._down, self._routing)
        self._tools.call("awq_edge_experts", *weights, *self._places, rows, *workspace)


class _DenseLinear:
    """y = x W^T (+ bias)"""

    def __init__(self, given: Operands, tools: Tools) -> None:
        self._tools = tools
        x, y = given.input("x"), given.output("y")
        self._x, self._y = x.address, y.address
        self._weight = DenseWeight(
            in_features=x.width,
            out_features=y.width,
            dtype=tools.dtype,
            weight=given.tensor("weight", (y.width, x.width)),
            bias=given.optional_tensor("bias", (y.width,)),
        )

    def workspace_bytes(self, rows: int) -> int:
        return self._tools.size("awq_edge_dense_workspace", self._weight, rows, Tactic.AUTO)

    def queue(self, rows: int, workspace: tuple[int, int]) -> None:
        self._tools.call(
            "awq_edge_dense_linear", self._weight, self._x, self._y, rows, Tactic.AUTO, *workspace
        )


class _CachedAttention:
    """Rotation, append to the cache, attention over its valid part."""

    def __init__(self, given: Operands, tools: Tools) -> None:
        self._tools = tools
        heads, kv_heads, size = map(given.integer, ("num_heads", "num_kv_heads", "head_size"))
        rotary = given.integer("rotary_size")
        q, k, v = map(given.input, "qkv")
        y = given.output("y")
        given.require({q.width, y.width} == {heads * size}, "q or y is not as wide as its heads")
        given.require({k.width, v.width} == {kv_heads * size}, "k or v is not as its heads")
        cache = (1, kv_heads, tools.context, size)
        table = (tools.positions, rotary // 2)
        self._parameters = AttentionParameters(
            dtype=tools.dtype,
            kv_dtype=tools.dtype,
            batch=1,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_size=size,
            rotary_size=rotary,
            context=tools.context,
            window=given.integer("window"),
            scale=given.number("scale"),
            soft_cap=given.number("soft_cap"),
            q=q.address,
            k=k.address,
            v=v.address,
            q_stride=q.stride,
            k_stride=k.stride,
            v_stride=v.stride,
            past_length=given.address("past_length"),
            cosine=given.tensor("cosine", table, "float32") if rotary else None,
            sine=given.tensor("sine", table, "float32") if rotary else None,
            q_norm=given.optional_tensor("q_norm", (size,)),
            k_norm=given.optional_tensor("k_norm", (size,)),
            norm_eps=given.number("norm_eps"),
            key_cache=given.state("key", cache),
            value_cache=given.state("value", cache),
            y=y.address,
        )

    def workspace_bytes(self, rows: int) -> int:
        self._parameters.tokens = rows
        return self._tools.size("awq_edge_cached_attention_workspace", self._parameters)

    def queue(self, rows: int, workspace: tuple[int, int]) -> None:
        self._parameters.tokens = rows
        self._tools.call("awq_edge_cached_attention", self._parameters, *workspace)


def _width_limit(sizes: Sizes) -> str | None:
    for name in ("x", "y", "gate"):
        size = sizes.get(name, 0)
        if isinstance(size, int) and size % _VECTOR:
            return f"a width of {size} is not a multiple of {_VECTOR}"
    return None


def _input_limit(sizes: Sizes) -> str | None:
    return _width_limit({"x": sizes.get("x", 0)})


def _head_limit(sizes: Sizes) -> str | None:
    size = sizes.get("head_size", 0)
    if size in HEAD_SIZES:
        return None
    return f"head size {size} is not one of {', '.join(map(str, HEAD_SIZES))}"


def _group_limit(sizes: Sizes) -> str | None:
    size = sizes.get("group_size", 0)
    if size not in GROUP_SIZES:
        return f"group_size {size} is not one of {', '.join(map(str, GROUP_SIZES))}"
    return _input_limit(sizes)


def _expert_limit(sizes: Sizes) -> str | None:
    for part in ("gate_up", "down"):
        problem = _group_limit({"group_size": sizes.get(f"{part}.group_size", 0)})
        if problem is not None:
            return problem
    return _width_limit({"x": sizes.get("x", 0), "y": sizes.get("inner_size", 0)})


OPERATIONS: dict[str, Operation] = {
    "embedding": Operation(_embedding, _width_limit),
    "add_positions": Operation(_add_positions, _width_limit),
    "rms_norm": Operation(functools.partial(_Norm, NormKind.RMS), _width_limit),
    "layer_norm": Operation(functools.partial(_Norm, NormKind.LAYER), _width_limit),
    "w4a16_linear": Operation(_W4A16Linear, _group_limit),
    "dense_linear": Operation(_DenseLinear, _input_limit),
    "routed_experts": Operation(_RoutedExperts, _expert_limit),
    "cached_attention": Operation(_CachedAttention, _head_limit),
    "gather_rows": Operation(_gather_rows, _width_limit),
    "logits": Operation(_logits),
} | {
    kind.name.lower(): Operation(functools.partial(_Activation, kind), _width_limit)
    for kind in Activation
}
KERNEL_DTYPES = {"float16": Dtype.FLOAT16, "bfloat16": Dtype.BFLOAT16}
