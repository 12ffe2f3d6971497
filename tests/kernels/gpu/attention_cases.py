"""Calls of awq_edge_cached_attention, and docs/graph.md's CachedAttention in float64 to compare."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch

from awq_edge.kernels.interface import COUNTER_BYTES, AttentionParameters, Dtype

# Half a unit in the last place, relative. The shares and the result are rounded once each, int8
# values of a prefill too: the output as a whole is off by about that, single elements by a few.
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
RMS_TOLERANCE_UNITS = 3.0
ELEMENT_TOLERANCE_UNITS = 8.0
# float32 arithmetic of norm and rotation, relative to the largest channel.
FLOAT32_TOLERANCE = 2e-6


@dataclass(frozen=True)
class Case:
    """One call. past: filled positions of each sequence; its length is the batch."""

    past: tuple[int, ...]
    tokens: int
    num_heads: int = 4
    num_kv_heads: int = 4
    head_size: int = 128
    rotary_size: int | None = None
    context: int = 0
    window: int = 0
    soft_cap: float = 0.0
    dtype: torch.dtype = torch.float16
    int8: bool = False
    norms: bool = False
    merged: bool = True
    scale: float | None = None
    query_gain: float = 1.0

    def __str__(self) -> str:
        past = ",".join(map(str, self.past))
        extras = "".join(
            f"-{name}{value}"
            for name, value in (
                ("w", self.window),
                ("cap", self.soft_cap),
                ("r", self.rotary_size),
                ("c", self.context),
                ("gain", self.query_gain if self.query_gain != 1.0 else None),
            )
            if value
        )
        flags = ("-int8" * self.int8) + ("-norms" * self.norms) + ("-apart" * (not self.merged))
        dtype = str(self.dtype).removeprefix("torch.")
        heads = f"{self.num_heads}/{self.num_kv_heads}x{self.head_size}"
        return f"p{past}-s{self.tokens}-{heads}-{dtype}{extras}{flags}"


class Call:
    """The tensors of a case on the GPU, filled from a seed; what is not valid is NaN."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        random = torch.Generator("cuda").manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=random, device="cuda")

        batch, size, heads, kv_heads = (
            len(case.past),
            case.head_size,
            case.num_heads,
            case.num_kv_heads,
        )
        self.context = case.context or max(case.past) + case.tokens + 3
        self.rotary = size if case.rotary_size is None else case.rotary_size
        self.past = torch.tensor(case.past, dtype=torch.int64, device="cuda")
        widths = [heads * size, kv_heads * size, kv_heads * size]
        if case.merged:
            qkv = normal(batch, case.tokens, sum(widths)).to(case.dtype)
            self.q, self.k, self.v = qkv.split(widths, dim=-1)
        else:
            self.q, self.k, self.v = (
                normal(batch, case.tokens, width).to(case.dtype) for width in widths
            )
        self.q.mul_(case.query_gain)
        angle = torch.rand(self.context, self.rotary // 2, generator=random, device="cuda") * 6.3
        self.cosine, self.sine = angle.cos(), angle.sin()
        self.q_norm = self.k_norm = None
        if case.norms:
            self.q_norm = (1 + 0.3 * normal(size)).to(case.dtype)
            self.k_norm = (1 + 0.3 * normal(size)).to(case.dtype)
        self.key_cache, self.key_scales = self._cache(random)
        self.value_cache, self.value_scales = self._cache(random)
        self.y = torch.full(
            (batch, case.tokens, heads * size), torch.nan, dtype=case.dtype, device="cuda"
        )
        self.scale = size**-0.5 if case.scale is None else case.scale

    def _cache(self, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        case = self.case
        shape = (len(case.past), case.num_kv_heads, self.context, case.head_size)
        valid = torch.arange(self.context, device="cuda")[None, None, :] < self.past[:, None, None]
        valid = valid.expand(shape[:3])
        if not case.int8:
            cache = torch.randn(*shape, generator=random, device="cuda").to(case.dtype)
            return cache.masked_fill(~valid[..., None], torch.nan), None
        codes = torch.randint(-127, 128, shape, generator=random, device="cuda", dtype=torch.int8)
        # Scales differ by far from position to position, as they do behind an outlier.
        scales = 10 ** (torch.rand(*shape[:3], generator=random, device="cuda") * 2 - 3.5)
        return codes, scales.masked_fill(~valid, torch.nan)

    def parameters(self) -> AttentionParameters:
        case = self.case

        def address(tensor: torch.Tensor | None) -> int | None:
            return None if tensor is None else tensor.data_ptr()

        dtype = Dtype.FLOAT16 if case.dtype == torch.float16 else Dtype.BFLOAT16
        return AttentionParameters(
            dtype=dtype,
            kv_dtype=Dtype.INT8 if case.int8 else dtype,
            batch=len(case.past),
            tokens=case.tokens,
            num_heads=case.num_heads,
            num_kv_heads=case.num_kv_heads,
            head_size=case.head_size,
            rotary_size=self.rotary,
            context=self.context,
            window=case.window,
            scale=self.scale,
            soft_cap=case.soft_cap,
            q=address(self.q),
            k=address(self.k),
            v=address(self.v),
            q_stride=self.q.stride(1),
            k_stride=self.k.stride(1),
            v_stride=self.v.stride(1),
            past_length=address(self.past),
            cosine=address(self.cosine) if self.rotary else None,
            sine=address(self.sine) if self.rotary else None,
            q_norm=address(self.q_norm),
            k_norm=address(self.k_norm),
            norm_eps=1e-6,
            key_cache=address(self.key_cache),
            value_cache=address(self.value_cache),
            key_scales=address(self.key_scales),
            value_scales=address(self.value_scales),
            y=address(self.y),
        )

    def workspace(self, library: Any) -> torch.Tensor:
        """Zeroed counters, and NaN where partial results go."""
        size = library.size("awq_edge_cached_attention_workspace", ctypes.byref(self.parameters()))
        space = torch.full((max(size, 16),), 255, dtype=torch.uint8, device="cuda")
        space[:COUNTER_BYTES] = 0
        return space

    def run(self, library: Any, workspace: torch.Tensor | None = None) -> torch.Tensor:
        space = self.workspace(library) if workspace is None else workspace
        library.call(
            "awq_edge_cached_attention",
            ctypes.byref(self.parameters()),
            space.data_ptr(),
            space.numel(),
            torch.cuda.current_stream().cuda_stream,
        )
        if not torch.cuda.is_current_stream_capturing():
            assert not space[:COUNTER_BYTES].any(), "counters are not zero after the call"
        return self.y


def prepared(call: Call, rows: torch.Tensor, heads: int, norm: torch.Tensor | None) -> torch.Tensor:
    """q or k after the norm and the rotation, float64 [b, s, heads, d]; rows: [b, s, heads * d]."""
    case = call.case
    x = rows.reshape(*rows.shape[:2], heads, case.head_size).double()
    if norm is not None:
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.double()
    if call.rotary == 0:
        return x
    positions = call.past[:, None] + torch.arange(case.tokens, device="cuda")
    positions = positions.clamp(max=call.context - 1)
    cosine, sine = (table.double()[positions][:, :, None] for table in (call.cosine, call.sine))
    half = call.rotary // 2
    first, second, rest = x.split([half, half, case.head_size - call.rotary], dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], dim=-1)


def cache_values(cache: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    return cache.double() if scales is None else cache.double() * scales.double()[..., None]


def reference(call: Call, window: int | None = None) -> torch.Tensor:
    """y in float64 [b, s, h * d], from the cache as the call left it. NaN behind the context."""
    case = call.case
    window = case.window if window is None else window
    group = case.num_heads // case.num_kv_heads
    q = prepared(call, call.q, case.num_heads, call.q_norm).transpose(1, 2)  # [b, h, s, d]
    # As k in the cache, q is of the activation dtype once it is rotated.
    q = q.to(case.dtype).double()
    y = torch.full_like(q, torch.nan)
    keys = cache_values(call.key_cache, call.key_scales)
    values = cache_values(call.value_cache, call.value_scales)
    for b, past in enumerate(case.past):
        end = min(past + case.tokens, call.context)
        k = keys[b, :, :end].repeat_interleave(group, 0)
        v = values[b, :, :end].repeat_interleave(group, 0)
        scores = q[b, :, : end - past] @ k.transpose(1, 2) * call.scale
        if case.soft_cap:
            scores = case.soft_cap * torch.tanh(scores / case.soft_cap)
        key = torch.arange(end, device="cuda")[None, :]
        position = torch.arange(past, end, device="cuda")[:, None]
        visible = key <= position
        if window:
            visible &= key > position - window
        y[b, :, : end - past] = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v
    return y.transpose(1, 2).flatten(2)


def check_output(call: Call, y: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises AssertionError unless y is the reference within rounding, and finite."""
    inside = ~expected.isnan()
    found, wanted = y.double()[inside], expected[inside]
    assert found.isfinite().all(), f"{(~found.isfinite()).sum()} outputs are not finite"
    unit = UNIT[call.case.dtype]
    rms = ((found - wanted).square().mean() / wanted.square().mean()).sqrt().item()
    assert rms <= RMS_TOLERANCE_UNITS * unit, f"relative error {rms}"
    largest = (found - wanted).abs().max().item()
    assert largest <= ELEMENT_TOLERANCE_UNITS * unit * wanted.abs().max().item(), f"{largest}"


def check_appended(
    call: Call,
    expected: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor | None],
    after: tuple[torch.Tensor, torch.Tensor | None],
) -> None:
    """The cache holds `expected` (float64 [b, s, g, d]) at new positions, the rest as before."""
    case = call.case
    (codes_before, scales_before), (codes, scales) = before, after
    for b, past in enumerate(case.past):
        new = slice(past, min(past + case.tokens, call.context))
        wanted = expected[b, : new.stop - past].transpose(0, 1)  # [g, s, d]
        found = cache_values(codes, scales)[b, :, new]
        largest = wanted.abs().amax(-1, keepdim=True)
        if case.int8:
            assert scales is not None
            torch.testing.assert_close(
                scales[b, :, new].double(), largest[..., 0] / 127, rtol=1e-5, atol=0
            )
            bound = largest / 254 + FLOAT32_TOLERANCE * largest * 127
        else:
            bound = UNIT[case.dtype] * wanted.abs() + FLOAT32_TOLERANCE * largest
        assert ((found - wanted).abs() <= bound).all()
        for part in (slice(0, new.start), slice(new.stop, None)):
            assert same_bits(codes[b, :, part], codes_before[b, :, part])
            if scales is not None and scales_before is not None:
                assert same_bits(scales[b, :, part], scales_before[b, :, part])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal also where both are NaN of the same bits."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
