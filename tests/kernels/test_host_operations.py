"""The NumPy stand-ins of the kernels against torch, which shares no line with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from awq_edge.kernels.interface import (
    Activation,
    AttentionParameters,
    Dtype,
    Epilogue,
    NormKind,
    NormParameters,
    Routing,
    W4A16Weight,
)
from awq_edge.kernels.packing import PackedWeight, pack, pack_gate_up
from awq_edge.model.w4a16 import QuantizedWeight, dequantize
from tests.kernels.host_attention import cached_attention
from tests.kernels.host_experts import routed_experts
from tests.kernels.host_operations import HostOperations, activated

torch = pytest.importorskip("torch", reason="needs torch")

# Results are rounded to float16 once.
ROUNDING = {"rtol": 2.0**-11 + 1e-5, "atol": 1e-6}
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


@pytest.mark.parametrize("activation", tuple(Activation))
def test_activations_are_torch_s(activation: Activation) -> None:
    functions = torch.nn.functional
    x = torch.linspace(-8, 8, 200)
    exact = {
        Activation.SILU: functions.silu,
        Activation.GELU: functions.gelu,
        Activation.GELU_TANH: lambda x: functions.gelu(x, approximate="tanh"),
        Activation.RELU: torch.relu,
        Activation.RELU_SQUARED: lambda x: torch.relu(x) ** 2,
    }[activation](x.double())
    found = torch.from_numpy(activated(x.numpy(), activation)).double()
    torch.testing.assert_close(found, exact, **FLOAT32)


@pytest.mark.parametrize("kind", tuple(NormKind))
def test_norms_are_torch_s(kind: NormKind) -> None:
    functions = torch.nn.functional
    x, residual = normal(3, 64), normal(3, 64, seed=1)
    weight, post, bias = normal(64, seed=2), normal(64, seed=3), normal(64, seed=4)

    def norm(x: Any, weight: Any) -> Any:
        if kind == NormKind.LAYER:
            return functions.layer_norm(x, (64,), 1 + weight.double(), bias.double(), 1e-6)
        return functions.rms_norm(x, (64,), 1 + weight.double(), 1e-6)

    summed = (residual.double() + 0.5 * norm(x.double(), post)).half()
    y = torch.empty_like(x)
    shift = bias.data_ptr() if kind == NormKind.LAYER else None
    HostOperations().normalize(
        NormParameters(
            kind=kind,
            dtype=Dtype.FLOAT16,
            rows=3,
            size=64,
            eps=1e-6,
            weight_offset=1.0,
            residual_scale=0.5,
            x=x.data_ptr(),
            post_weight=post.data_ptr(),
            post_bias=shift,
            residual=residual.data_ptr(),
            weight=weight.data_ptr(),
            bias=shift,
            y=y.data_ptr(),
        )
    )
    torch.testing.assert_close(residual, summed, **ROUNDING)
    torch.testing.assert_close(y.double(), norm(residual.double(), weight), **ROUNDING)


@pytest.mark.parametrize("sinks", [False, True])
def test_attention_of_sequences_of_different_length_is_torch_s(sinks: bool) -> None:
    """One call over rows of 3 and 2 tokens, against softmax(q k^T) v of each."""
    heads, size, context, past, counts = 4, 32, 12, (2, 5), (3, 2)
    qkv = normal(5, 3 * heads * size)
    caches = [normal(2, heads, context, size, seed=seed) for seed in (1, 2)]
    before = [cache.clone() for cache in caches]
    sink = normal(heads, seed=3)
    length, begin = torch.tensor(past), torch.tensor([0, 3, 5])
    y = torch.empty(5, heads * size, dtype=torch.float16)
    addresses = [qkv[:, i * heads * size :].data_ptr() for i in range(3)]
    cached_attention(
        AttentionParameters(
            dtype=Dtype.FLOAT16,
            kv_dtype=Dtype.FLOAT16,
            batch=2,
            tokens=3,
            num_heads=heads,
            num_kv_heads=heads,
            head_size=size,
            context=context,
            scale=0.25,
            q=addresses[0],
            k=addresses[1],
            v=addresses[2],
            q_stride=3 * heads * size,
            k_stride=3 * heads * size,
            v_stride=3 * heads * size,
            past_length=length.data_ptr(),
            row_begin=begin.data_ptr(),
            key_cache=caches[0].data_ptr(),
            value_cache=caches[1].data_ptr(),
            sinks=sink.data_ptr() if sinks else None,
            y=y.data_ptr(),
        )
    )
    for b, (filled, count) in enumerate(zip(past, counts, strict=True)):
        own = slice(int(begin[b]), int(begin[b]) + count)
        q, k, v = (
            part.reshape(count, heads, size).transpose(0, 1).double()
            for part in qkv[own].chunk(3, dim=1)
        )
        k, v = (
            torch.cat([cache[b, :, :filled].double(), new], dim=1)
            for cache, new in zip(before, (k, v), strict=True)
        )
        scores = 0.25 * q @ k.transpose(1, 2)
        future = torch.arange(filled + count)[None, :] > filled + torch.arange(count)[:, None]
        scores = scores.masked_fill(future, -torch.inf)
        if sinks:
            column = sink.double()[:, None, None].expand(heads, count, 1)
            scores = torch.cat([scores, column], dim=2)
        shares = scores.softmax(dim=-1)[..., : filled + count]
        expected = (shares @ v).transpose(0, 1).flatten(1)
        torch.testing.assert_close(y[own].double(), expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("normalize", [False, True])
def test_routed_experts_are_a_loop_over_tokens(normalize: bool) -> None:
    count, size, intermediate, m, top_k = 4, 64, 32, 5, 2
    random = np.random.default_rng(0)

    def quantized(rows: int, columns: int) -> QuantizedWeight:
        shape = (rows, columns // 32)
        return QuantizedWeight(
            codes=random.integers(0, 16, (rows, columns), dtype=np.uint8),
            scales=random.uniform(0.01, 0.05, shape).astype(np.float16),
            zeros=random.integers(0, 16, shape, dtype=np.uint8),
            bits=4,
        )

    shapes = ((intermediate, size), (intermediate, size), (size, intermediate))
    each = [tuple(quantized(*shape) for shape in shapes) for _ in range(count)]
    packings = [(pack_gate_up(gate, up), pack(down)) for gate, up, down in each]
    gate_up, kept = _stacked([p[0] for p in packings], Epilogue.SILU_MUL)
    down, kept_too = _stacked([p[1] for p in packings], Epilogue.NONE)
    logits, x = normal(m, count), normal(m, size, seed=1)
    y = torch.empty_like(x)
    routing = Routing(num_experts=count, top_k=top_k, normalize=int(normalize))
    addresses = (logits.data_ptr(), x.data_ptr(), y.data_ptr())
    operations = HostOperations()
    routed_experts(gate_up, down, routing, *addresses, m, operations.dequantized)
    shares = logits.double().softmax(dim=1)
    for row in range(m):
        chosen = shares[row].topk(top_k)
        total = chosen.values.sum() if normalize else 1.0
        expected = torch.zeros(size, dtype=torch.float64)
        for share, expert in zip(chosen.values, chosen.indices.tolist(), strict=True):
            gate, up, out = (torch.from_numpy(dequantize(w)).double() for w in each[expert])
            hidden = torch.nn.functional.silu(gate @ x[row].double()) * (up @ x[row].double())
            expected += share / total * (out @ hidden)
        torch.testing.assert_close(y[row].double(), expected, rtol=5e-3, atol=5e-3)
    assert kept and kept_too


def _stacked(
    packings: list[PackedWeight], epilogue: Epilogue
) -> tuple[W4A16Weight, dict[str, Any]]:
    """The weight of the first, its arrays followed by the others', and these arrays."""
    first = packings[0]
    names = ("qweight", "scales", "zeros")
    arrays = {
        name: torch.from_numpy(np.stack([getattr(each, name) for each in packings]))
        for name in names
    }
    weight = W4A16Weight(
        bits=first.bits,
        group_size=first.group_size,
        in_features=first.in_features,
        out_features=first.out_features,
        dtype=Dtype.FLOAT16,
        epilogue=epilogue,
        **{name: array.data_ptr() for name, array in arrays.items()},
    )
    return weight, arrays
