"""Cached attention on a GPU: rotation, append, decode and prefill, against float64."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import pytest

from awq_edge.errors import KernelError
from awq_edge.kernels.interface import COUNTER_BYTES, HEAD_SIZES
from awq_edge.kernels.kernels import load_kernels

torch = pytest.importorskip("torch", reason="needs torch")

from .attention_cases import (  # noqa: E402
    Call,
    Case,
    check_appended,
    check_output,
    prepared,
    reference,
    same_bits,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

HALF, BRAIN = torch.float16, torch.bfloat16
TOKENS = (1, 2, 5, 8, 16, 17, 64, 100, 512)


@pytest.fixture(scope="module")
def library() -> Any:
    return load_kernels()


def heads(ratio: int) -> dict[str, int]:
    return {"num_heads": 2 * ratio, "num_kv_heads": 2}


CASES = [
    *(
        Case((0, 333, 70), tokens, **heads(ratio), norms=ratio == 4)
        for tokens in TOKENS
        for ratio in (1, 4, 7, 8)
    ),
    *(
        Case((130, 0), tokens, head_size=size, **heads(2), dtype=dtype, int8=int8)
        for size in HEAD_SIZES
        for dtype in (HALF, BRAIN)
        for int8 in (False, True)
        for tokens in (1, 5, 33, 200)
    ),
    *(
        Case((700, 5), tokens, **heads(4), window=window, int8=int8, dtype=dtype)
        for window in (1, 7, 64, 300)
        for tokens in (1, 8, 40, 300)
        for int8, dtype in ((False, HALF), (True, BRAIN))
    ),
    *(
        Case((257,), tokens, **heads(2), soft_cap=cap, int8=int8, query_gain=4.0, head_size=size)
        for tokens in (1, 100)
        for cap in (2.0, 50.0)
        for int8 in (False, True)
        for size in (64, 256)
    ),
    *(
        Case((99, 31), tokens, head_size=size, rotary_size=rotary, norms=True, merged=False)
        for tokens in (1, 70)
        for size, rotary in ((64, 0), (96, 32), (128, 2), (128, 96), (256, 64))
    ),
    # Long: all splits at work, with few kv heads and with many, and more of them than positions.
    Case((5000,), 1, num_heads=32, num_kv_heads=8),
    Case((5000,), 1, num_heads=32, num_kv_heads=8, int8=True, dtype=BRAIN),
    Case((9000, 63, 64, 65), 1, num_heads=8, num_kv_heads=1, head_size=256),
    Case((4095,), 1, num_heads=32, num_kv_heads=32, context=4096),
    Case((300,), 1, num_heads=8, num_kv_heads=2, context=16384),
    Case((3000,), 8, num_heads=8, num_kv_heads=2, head_size=64),
    Case((3000,), 130, num_heads=8, num_kv_heads=2, int8=True),
    # Prefills with enough blocks for the large tiles, on any GPU with up to 150 SMs.
    *(
        Case((100, 0), 600, num_heads=32, num_kv_heads=8, head_size=size, dtype=dtype, int8=int8)
        for size in (32, 64, 96, 128)
        for dtype, int8 in ((HALF, False), (HALF, True), (BRAIN, False))
    ),
    Case((1300, 77), 600, num_heads=32, num_kv_heads=8, window=200, soft_cap=30.0, norms=True),
    Case((1300, 77), 600, num_heads=32, num_kv_heads=8, window=200, int8=True, rotary_size=6),
    # A peaked softmax, and a flat one.
    Case((600,), 1, query_gain=20.0),
    Case((600,), 90, query_gain=20.0),
    Case((600,), 1, scale=1e-3),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(library: Any, case: Case) -> None:
    call = Call(case)
    keys = call.key_cache.clone(), None if call.key_scales is None else call.key_scales.clone()
    values = (
        call.value_cache.clone(),
        None if call.value_scales is None else call.value_scales.clone(),
    )
    y = call.run(library)
    check_appended(
        call,
        prepared(call, call.k, case.num_kv_heads, call.k_norm),
        keys,
        (call.key_cache, call.key_scales),
    )
    new_values = call.v.reshape(len(case.past), case.tokens, case.num_kv_heads, -1).double()
    check_appended(call, new_values, values, (call.value_cache, call.value_scales))
    check_output(call, y, reference(call))


@pytest.mark.parametrize("tokens", [1, 100])
def test_the_comparison_notices_one_position(library: Any, tokens: int) -> None:
    """A window that is off by one position is beyond the tolerance."""
    call = Call(Case((400,), tokens, window=32))
    y = call.run(library)
    check_output(call, y, reference(call))
    for window in (31, 33):
        with pytest.raises(AssertionError, match="relative error"):
            check_output(call, y, reference(call, window=window))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tokens", [4, 100])
def test_nothing_is_written_behind_the_context(library: Any, tokens: int, int8: bool) -> None:
    """Sequences that end at, beyond and far beyond the last position, in caches with neighbours."""
    case = Case((198, 250, 1_000_000, 0), tokens, context=200, int8=int8)
    call = Call(replace(case, past=(198, 200, 200, 0)))
    call.past.copy_(torch.tensor(case.past))
    guards = []
    for name in ("key_cache", "value_cache", "key_scales", "value_scales"):
        inner = getattr(call, name)
        if inner is None:
            continue
        outer = torch.full((inner.numel() + 4096,), 77, dtype=inner.dtype, device="cuda")
        outer[2048:-2048] = inner.flatten()
        setattr(call, name, outer[2048:-2048].view(inner.shape))
        guards.append((outer, inner))
    y = call.run(library)
    check_output(call, y[:1], reference(call)[:1])
    check_output(call, y[3:], reference(call)[3:])
    for outer, inner in guards:
        assert (outer[:2048] == 77).all() and (outer[-2048:] == 77).all()
        assert same_bits(outer[2048:-2048].view(inner.shape)[1:3], inner[1:3])


@pytest.mark.parametrize("tokens", [1, 8, 100])
@pytest.mark.parametrize("int8", [False, True])
def test_same_bits_every_time(library: Any, tokens: int, int8: bool) -> None:
    case = Case((2000, 17), tokens, num_heads=8, num_kv_heads=2, int8=int8)
    first = Call(case).run(library).clone()
    assert all(same_bits(Call(case).run(library), first) for _ in range(20))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("window", [0, 50])
def test_a_graph_follows_a_growing_cache(library: Any, window: int, int8: bool) -> None:
    """One captured decode step, 200 times: past_length is read on the device."""
    past = (3, 120)
    call = Call(Case(past, 1, num_heads=8, num_kv_heads=2, context=400, window=window, int8=int8))
    workspace = call.workspace(library)
    steps = torch.randn(200, *call.q.shape[:2], call.q.stride(1), device="cuda").to(HALF)
    merged = torch.empty_like(steps[0])
    call.q, call.k, call.v = merged.split([8 * 128, 2 * 128, 2 * 128], dim=-1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run(library, workspace)
        call.past.add_(1)
    for step in range(200):
        merged.copy_(steps[step])
        graph.replay()
        if step % 33 == 0 or step == 199:
            now = replace(call.case, past=tuple(p + step for p in past))
            view = Call.__new__(Call)
            view.__dict__.update(call.__dict__, case=now, past=call.past - 1)
            check_output(view, call.y, reference(view))
    assert not workspace[:COUNTER_BYTES].any()


@pytest.mark.parametrize("int8", [False, True])
def test_chunks_and_steps_are_one_prefill(library: Any, int8: bool) -> None:
    """130 tokens at once, in chunks that take both kernels, and one by one."""
    whole = Call(Case((0,), 130, num_heads=8, num_kv_heads=2, context=140, int8=int8))
    expected = whole.run(library).double()
    for sizes in ([64, 1, 60, 5], [17] * 7 + [11], [1] * 130):
        part = Call(replace(whole.case), seed=1)
        part.cosine, part.sine = whole.cosine, whole.sine
        found, begin = [], 0
        for tokens in sizes:
            step = Call.__new__(Call)
            step.__dict__.update(
                part.__dict__, case=replace(whole.case, past=(begin,), tokens=tokens)
            )
            step.q, step.k, step.v = (
                x[:, begin : begin + tokens] for x in (whole.q, whole.k, whole.v)
            )
            step.past = torch.tensor([begin], device="cuda")
            step.y = torch.full_like(whole.y[:, begin : begin + tokens], torch.nan)
            found.append(step.run(library))
            begin += tokens
        check_output(whole, torch.cat(found, dim=1), expected)
        assert same_bits(part.key_cache[:, :, :130], whole.key_cache[:, :, :130])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_size": 80}, "head_size is 80"),
        ({"num_heads": 7}, "num_heads 7 is not a multiple of num_kv_heads 4"),
        ({"rotary_size": 63}, "rotary_size is 63"),
        ({"kv_dtype": 1}, "kv_dtype is 1"),
        ({"scale": 0.0}, "scale is 0"),
        ({"soft_cap": -1.0}, "soft_cap -1"),
        ({"window": -1}, "window is -1"),
        ({"tokens": 0}, "tokens is 0"),
        ({"context": 0}, "context is 0"),
        ({"q": None}, "q is null"),
        ({"q_stride": 12}, "q_stride is 12"),
        ({"kv_dtype": 2}, "key_scales is null"),
        ({"cosine": None}, "cosine is null"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_wrong_arguments_are_put_into_words(
    library: Any, changes: dict[str, Any], words: str
) -> None:
    call = Call(Case((5,), 1))
    parameters = call.parameters()
    for name, value in changes.items():
        setattr(parameters, name, value)
    space = call.workspace(library)
    with pytest.raises(KernelError, match=words):
        library.call(
            "awq_edge_cached_attention",
            ctypes.byref(parameters),
            space.data_ptr(),
            space.numel(),
            None,
        )
    assert call.y.isnan().all()


def test_a_small_workspace_is_refused(library: Any) -> None:
    call = Call(Case((500,), 1))
    space = call.workspace(library)
    with pytest.raises(KernelError, match=f"{space.numel()} are needed"):
        call.run(library, space[: space.numel() - 16])


def test_the_workspace_serves_fewer_tokens(library: Any) -> None:
    case = Case((500,), 512, num_heads=32, num_kv_heads=8)
    sizes = [Call(replace(case, tokens=tokens)).workspace(library).numel() for tokens in TOKENS]
    assert sizes == sorted(sizes) and sizes[0] > COUNTER_BYTES
