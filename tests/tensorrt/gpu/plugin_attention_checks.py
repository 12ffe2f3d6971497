"""CachedAttention of both plugins on a GPU, driven as TensorRT drives it, against float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from awq_edge.tensorrt.contract import CACHED_ATTENTION
from awq_edge.tensorrt.op_contract import Number
from tests.tensorrt.drivers import Driver

from .plugin_checks import TOLERANCE, TYPES, ones, run

# Of the largest value: half a step of int8, and a code that rounding puts one step aside.
INT8_TOLERANCE = 1.2e-2
EPS = 1e-5


@dataclass(frozen=True)
class AttentionCase:
    tokens: int
    past: tuple[int, ...]
    dtype: torch.dtype = torch.float16
    merged: bool = False
    in_place: bool = True
    window: int = 0
    soft_cap: float = 0.0
    qk_norm: bool = False
    int8: bool = False
    heads: int = 8
    kv_heads: int = 2
    head_size: int = 64
    context: int = 256

    def fields(self) -> dict[str, Number]:
        return {
            "num_heads": self.heads,
            "num_kv_heads": self.kv_heads,
            "head_size": self.head_size,
            "rotary_size": self.head_size,
            "scale": self.head_size**-0.5,
            "window": self.window,
            "soft_cap": self.soft_cap,
            "merged_qkv": int(self.merged),
            "qk_norm": int(self.qk_norm),
            "norm_eps": EPS,
            "int8_cache": int(self.int8),
        }


ATTENTION_CASES = (
    AttentionCase(1, (200,)),
    AttentionCase(1, (3, 130), torch.bfloat16, merged=True, in_place=False),
    AttentionCase(40, (0, 100), merged=True),
    AttentionCase(65, (17,), torch.bfloat16, in_place=False, window=50),
    AttentionCase(1, (77, 9), qk_norm=True, soft_cap=20.0),
    AttentionCase(1, (140,), int8=True, in_place=False),
    AttentionCase(33, (50, 2), torch.bfloat16, merged=True, int8=True, qk_norm=True),
)


def attention_inputs(case: AttentionCase) -> dict[str, torch.Tensor]:
    """Every input that a node could have, and q, k and v also where they are merged."""
    generator = torch.Generator("cuda").manual_seed(1)
    batch, d = len(case.past), case.head_size

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    tensors = {
        name: normal(batch, case.tokens, heads * d).to(case.dtype)
        for name, heads in (("q", case.heads), ("k", case.kv_heads), ("v", case.kv_heads))
    }
    tensors["qkv"] = torch.cat([tensors[name] for name in ("q", "k", "v")], dim=-1)
    tensors["past_length"] = torch.tensor(case.past, device="cuda")
    angles = normal(case.context, d // 2)
    tensors["cosine"], tensors["sine"] = angles.cos(), angles.sin()
    for name in ("q_norm", "k_norm"):
        tensors[name] = (1 + normal(d) / 4).to(case.dtype)
    for name in ("past_key", "past_value"):
        cache = normal(batch, case.kv_heads, case.context, d)
        scales = cache.abs().amax(-1) / 127
        codes = (cache / scales[..., None]).round().to(torch.int8)
        tensors[name] = codes if case.int8 else cache.to(case.dtype)
        tensors[f"{name}_scales"] = scales
    return tensors


def check_attention(driver: Driver, case: AttentionCase) -> list[torch.Tensor]:
    """Compare y and the cache with float64; returns the outputs."""
    values = CACHED_ATTENTION.read(case.fields())
    tensors = attention_inputs(case)
    expected = attention_reference(case, tensors)
    names = [tensor.name for tensor in CACHED_ATTENTION.inputs_of(values)]
    inputs = [tensors[name] for name in names]
    types = [TYPES[tensor.dtype] for tensor in inputs]
    shapes = [list(tensor.shape) for tensor in inputs]
    plugin = driver.create(CACHED_ATTENTION.name, case.fields())
    plugin.configure(types, shapes, shapes)
    size = plugin.workspace(types, shapes)
    plugin.attach()
    plugin.shape_change(types, shapes)
    before = {name: tensors[name].clone() for name in names}
    outputs = {"y": ones(list(tensors["q"].shape), case.dtype)}
    for tensor in CACHED_ATTENTION.outputs_of(values)[1:]:
        past = tensors[tensor.alias]
        outputs[tensor.name] = past if case.in_place else ones(list(past.shape), past.dtype)
    run(plugin, inputs, list(outputs.values()), size)
    found = {
        "y": outputs["y"].double(),
        "key": _numbers(outputs["present_key"], outputs.get("present_key_scales")),
        "value": _numbers(outputs["present_value"], outputs.get("present_value_scales")),
    }
    tolerance = INT8_TOLERANCE if case.int8 else TOLERANCE[case.dtype]
    for name, wanted in expected.items():
        error = (found[name] - wanted).abs().max() / wanted.abs().max()
        assert float(error) <= tolerance, f"{case}: {name} is off by {float(error)}"
    if not case.in_place:
        for name, tensor in before.items():
            assert torch.equal(tensors[name], tensor), f"{case}: {name} was written to"
    return list(outputs.values())


def attention_reference(
    case: AttentionCase, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """y, key and value in float64, from the definition in docs/graph.md."""
    keys, values = (
        _numbers(tensors[name], tensors[f"{name}_scales"] if case.int8 else None)
        for name in ("past_key", "past_value")
    )
    y = torch.zeros(tensors["q"].shape, device="cuda", dtype=torch.float64)
    group = case.heads // case.kv_heads
    for b, past in enumerate(case.past):
        q, k, v = (tensors[name][b].double().unflatten(-1, (-1, case.head_size)) for name in "qkv")
        if case.qk_norm:
            q, k = _normed(q, tensors["q_norm"]), _normed(k, tensors["k_norm"])
        positions = torch.arange(past, past + case.tokens, device="cuda")
        cos, sin = (tensors[name].double()[positions, None] for name in ("cosine", "sine"))
        q, k = (_rotated(each, cos, sin) for each in (q, k))
        keys[b, :, positions] = _stored(case, k.transpose(0, 1))
        values[b, :, positions] = _stored(case, v.transpose(0, 1))
        end = past + case.tokens
        seen_keys, seen_values = (
            cache[b, :, :end].repeat_interleave(group, 0) for cache in (keys, values)
        )
        scores = torch.einsum("shd,hcd->hsc", q, seen_keys) * case.head_size**-0.5
        if case.soft_cap:
            scores = case.soft_cap * torch.tanh(scores / case.soft_cap)
        columns = torch.arange(end, device="cuda")
        hidden = columns > positions[:, None]
        if case.window:
            hidden |= columns <= positions[:, None] - case.window
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        y[b] = torch.einsum("hsc,hcd->shd", weights, seen_values).flatten(1)
    return {"y": y, "key": keys, "value": values}


def _numbers(cache: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    return cache.double() if scales is None else cache.double() * scales.double()[..., None]


def _stored(case: AttentionCase, rows: torch.Tensor) -> torch.Tensor:
    """What the cache keeps of new rows."""
    if not case.int8:
        return rows.to(case.dtype).double()
    scales = rows.abs().amax(-1, keepdim=True) / 127
    return (rows / scales).round() * scales


def _normed(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rows * (rows.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


def _rotated(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = rows.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
