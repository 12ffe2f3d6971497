"""Sequences with different numbers of new tokens, rotations of every kind and sinks, against NumPy.

The same arguments go to the kernels and to tests/kernels/host_attention.py, which has no blocks, no
splits and no tiles.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import pytest

from awq_edge.kernels.interface import COUNTER_BYTES, HEAD_SIZES, AttentionParameters, Dtype
from awq_edge.kernels.kernels import load_kernels
from tests.kernels.host_attention import cached_attention

torch = pytest.importorskip("torch", reason="needs torch")

from .attention_cases import RMS_TOLERANCE_UNITS, UNIT  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

HALF, BRAIN = torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """One call. counts: new tokens of each sequence; past: filled positions of each."""

    counts: tuple[int, ...]
    past: tuple[int, ...]
    num_heads: int = 8
    num_kv_heads: int = 2
    head_size: int = 64
    rotary_size: int = 64
    context: int = 700
    window: int = 0
    soft_cap: float = 0.0
    dtype: Any = HALF
    int8: bool = False
    ragged: bool = True
    tables: int = 1
    axes: int = 0
    sinks: bool = False
    norm_offset: float | None = None


def tensors(case: Case) -> dict[str, Any]:
    """All that a call points to, on the CPU; past the filled positions the cache is NaN."""
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=random)

    batch, rows, d = len(case.past), sum(case.counts), case.head_size
    h, g, half = case.num_heads, case.num_kv_heads, case.rotary_size // 2
    past = torch.tensor(case.past)
    angle = torch.rand(case.tables, case.context, max(half, 1), generator=random) * 6.3
    made = {
        "qkv": normal(rows, (h + 2 * g) * d).to(case.dtype),
        "past_length": past,
        "cosine": angle.cos(),
        "sine": angle.sin(),
        "y": torch.full((rows, h * d), torch.nan).to(case.dtype),
    }
    filled = torch.arange(case.context)[None, None, :] < past[:, None, None]
    filled = filled.expand(batch, g, case.context)
    for name in ("key", "value"):
        if case.int8:
            shape = (batch, g, case.context, d)
            made[f"{name}_cache"] = torch.randint(
                -127, 128, shape, generator=random, dtype=torch.int8
            )
            scales = 10 ** (torch.rand(batch, g, case.context, generator=random) - 2.5)
            made[f"{name}_scales"] = scales.masked_fill(~filled, torch.nan)
        else:
            cache = normal(batch, g, case.context, d).to(case.dtype)
            made[f"{name}_cache"] = cache.masked_fill(~filled[..., None], torch.nan)
    if case.ragged:
        ends = torch.tensor(case.counts).cumsum(0)
        made["row_begin"] = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    if case.tables > 1:
        made["rotary_table"] = torch.arange(batch).flip(0) % case.tables
    if case.axes:
        # Some lie outside of the tables.
        made["positions"] = torch.randint(-3, case.context + 3, (rows, case.axes), generator=random)
        made["pair_axes"] = torch.randint(case.axes, (half,), generator=random, dtype=torch.int32)
    if case.sinks:
        made["sinks"] = (2 * normal(h)).to(case.dtype)
    if case.norm_offset is not None:
        made["q_norm"], made["k_norm"] = (0.3 * normal(2, d)).to(case.dtype).unbind(0)
    return made


def parameters(case: Case, placed: dict[str, Any]) -> AttentionParameters:
    h, g, d = case.num_heads, case.num_kv_heads, case.head_size
    dtype = Dtype.FLOAT16 if case.dtype == HALF else Dtype.BFLOAT16
    qkv, stride = placed["qkv"], (h + 2 * g) * d
    addresses = {name: each.data_ptr() for name, each in placed.items() if name != "qkv"}
    return AttentionParameters(
        dtype=dtype,
        kv_dtype=Dtype.INT8 if case.int8 else dtype,
        batch=len(case.past),
        tokens=max(case.counts),
        num_heads=h,
        num_kv_heads=g,
        head_size=d,
        rotary_size=case.rotary_size,
        context=case.context,
        window=case.window,
        scale=d**-0.5,
        soft_cap=case.soft_cap,
        rotary_tables=case.tables,
        position_axes=case.axes,
        q=qkv.data_ptr(),
        k=qkv[:, h * d :].data_ptr(),
        v=qkv[:, (h + g) * d :].data_ptr(),
        q_stride=stride,
        k_stride=stride,
        v_stride=stride,
        norm_eps=1e-6,
        norm_offset=case.norm_offset or 0.0,
        **addresses,
    )


CASES = [
    # Decode of several sequences, one of them without a new token, and one past two splits.
    *(
        Case((1, 0, 1, 3), (0, 5, 690, 333), int8=int8, dtype=dtype, head_size=size, rotary_size=32)
        for int8 in (False, True)
        for dtype in (HALF, BRAIN)
        for size in HEAD_SIZES
    ),
    # A prompt beside single tokens: the prefill kernels.
    *(
        Case(
            (130, 1, 0, 17), (0, 600, 9, 40), int8=int8, dtype=dtype, head_size=size, rotary_size=32
        )
        for int8 in (False, True)
        for dtype in (HALF, BRAIN)
        for size in HEAD_SIZES
    ),
    Case((400, 300), (7, 80), num_heads=64, num_kv_heads=8, window=90, soft_cap=20.0),
    # Rotations: tables by sequence, three axes, a part of the channels.
    *(
        Case(counts, (20, 300), ragged=False, tables=tables, axes=axes, rotary_size=rotary)
        for counts in ((2, 2), (70, 70))
        for tables, axes in ((2, 0), (1, 3), (3, 1))
        for rotary in (64, 48, 6)
    ),
    *(
        Case(counts, (20, 300), sinks=True, norm_offset=1.0, soft_cap=cap, dtype=dtype, tables=2)
        for counts in ((1, 2), (3, 90))
        for cap in (0.0, 30.0)
        for dtype in (HALF, BRAIN)
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_numpy(case: Case) -> None:
    library = load_kernels()
    host = tensors(case)
    device = {name: each.cuda() for name, each in host.items()}
    call = parameters(case, device)
    size = library.size("awq_edge_cached_attention_workspace", ctypes.byref(call))
    space = torch.full((max(size, 16),), 255, dtype=torch.uint8, device="cuda")
    space[:COUNTER_BYTES] = 0
    stream = torch.cuda.current_stream().cuda_stream
    library.call(
        "awq_edge_cached_attention", ctypes.byref(call), space.data_ptr(), space.numel(), stream
    )
    torch.cuda.synchronize()
    assert not space[:COUNTER_BYTES].any()
    cached_attention(parameters(case, host))

    def assert_near(found: Any, wanted: Any, units: float) -> None:
        found, wanted = found.cpu().double(), wanted.double()
        assert torch.equal(found.isnan(), wanted.isnan())
        found, wanted = found.nan_to_num(), wanted.nan_to_num()
        error = (found - wanted).norm() / wanted.norm()
        assert float(error) <= units * UNIT[case.dtype], float(error)

    assert_near(device["y"], host["y"], RMS_TOLERANCE_UNITS)
    for name in ("key_cache", "value_cache"):
        if case.int8:  # a code at the middle may go either way
            difference = (device[name].cpu().int() - host[name].int()).abs()
            assert int(difference.max()) <= 1 and int((difference > 0).sum()) <= 20
        else:
            assert_near(device[name], host[name], 0.2)


@pytest.mark.parametrize("counts", [(1, 2, 0), (90, 0, 2)])
def test_the_sequences_of_a_call_are_calls_of_their_own(counts: tuple[int, ...]) -> None:
    """As when each runs alone, but for the splits, and the maxima that shares are relative to."""
    past = (100, 7, 300)
    together = tensors(Case(counts, past))
    library = load_kernels()
    outputs = []
    for sequence in [None, *(i for i, count in enumerate(counts) if count)]:
        case = Case(counts, past)
        placed = {name: each.cuda() for name, each in together.items()}
        if sequence is not None:
            rows = slice(int(together["row_begin"][sequence]), None)
            case = Case((counts[sequence],), (past[sequence],), ragged=False)
            own = ("past_length", "key_cache", "value_cache")
            placed |= {name: placed[name][sequence:][:1].clone() for name in own}
            placed |= {name: placed[name][rows].clone() for name in ("qkv", "y")}
            del placed["row_begin"]
        call = parameters(case, placed)
        size = library.size("awq_edge_cached_attention_workspace", ctypes.byref(call))
        space = torch.zeros(max(size, 16), dtype=torch.uint8, device="cuda")
        stream = torch.cuda.current_stream().cuda_stream
        arguments = (ctypes.byref(call), space.data_ptr(), space.numel(), stream)
        library.call("awq_edge_cached_attention", *arguments)
        outputs.append(placed["y"][: sum(case.counts)])
    whole = outputs[0].double()
    apart = torch.cat(outputs[1:]).double()
    assert float((whole - apart).norm() / whole.norm()) < RMS_TOLERANCE_UNITS * UNIT[HALF]
