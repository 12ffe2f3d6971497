"""The operators awq_edge::W4A16Linear and awq_edge::CachedAttention, as TensorRT's plugins take
them.

This is the one place for names, attributes, dtypes and shapes. docs/plugin.md has it as tables, and
plugins/tensorrt/contract.cpp in C++; tests hold both to it. What the tensors mean is specified in
plugins/include/awq_edge_kernels.h, the packing of the weights in packing.py.
"""

from __future__ import annotations

from awq_edge.kernels.interface import LAYOUT_VERSION, Epilogue
from awq_edge.tensorrt.op_contract import Attribute, Attributes, Op, Tensor

DOMAIN = "awq_edge"
# Attributes of every node, by which TensorRT's parser finds the creator.
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = ""

# Rows of x in one call: the kernels' limit.
MAX_ROWS = 65535
# Rows up to which each byte of the weight is read once.
DECODE_ROWS = 16

_TILE = 16
_BLOCK = 128
_FLAG = (0, 1)


def _linear_dimensions(attributes: Attributes) -> dict[str, int]:
    bits, group_size = int(attributes["bits"]), int(attributes["group_size"])
    inputs, outputs = int(attributes["in_features"]), int(attributes["out_features"])
    blocks = -(-inputs // _BLOCK)
    return {
        "in_features": inputs,
        "out_features": outputs,
        "y_features": outputs // 2 if attributes["epilogue"] == Epilogue.SILU_MUL else outputs,
        "tiles": -(-outputs // _TILE),
        "blocks": blocks,
        "words": 64 * bits,
        "groups": blocks * _BLOCK // group_size,
        "zero_words": 4 if bits == 8 else 2,
    }


def _linear_conflicts(attributes: Attributes) -> str:
    inputs, outputs = attributes["in_features"], attributes["out_features"]
    if inputs % attributes["group_size"]:
        return (
            f"in_features is {inputs}, must be a multiple of group_size {attributes['group_size']}"
        )
    if attributes["epilogue"] == Epilogue.SILU_MUL and outputs % 2:
        return f"out_features is {outputs}, must be even for epilogue {int(Epilogue.SILU_MUL)}"
    return ""


W4A16_LINEAR = Op(
    name="W4A16Linear",
    meaning="y = x Wᵀ + bias for a quantized W = (codes - zeros) * scales",
    attributes=(
        Attribute("bits", "of a code", choices=(3, 4, 8)),
        Attribute(
            "group_size",
            "input channels that share a scale and a zero point",
            choices=(32, 64, 128),
        ),
        Attribute("in_features", "a multiple of group_size", minimum=1, maximum=2**24),
        Attribute("out_features", "rows of the weight", minimum=1, maximum=2**24),
        Attribute("layout_version", "of the packing", choices=(LAYOUT_VERSION,)),
        Attribute("has_zeros", "0: the zero point is 2^(bits-1)", default=0, choices=_FLAG),
        Attribute("has_bias", "whether bias is an input", default=0, choices=_FLAG),
        Attribute(
            "epilogue",
            "1: y = silu(gate) * up, the rows of the weight interleaved by pack_gate_up",
            default=0,
            choices=(int(Epilogue.NONE), int(Epilogue.SILU_MUL)),
        ),
    ),
    inputs=(
        Tensor("x", "activations", ("...", "in_features"), "at most 65535 rows"),
        Tensor("qweight", "int32", ("tiles", "blocks", "words"), "packed codes, a constant"),
        Tensor("scales", "float16", ("tiles", "groups", "8", "2"), "packed, a constant"),
        Tensor(
            "zeros", "int32", ("tiles", "groups", "zero_words"), "packed, a constant", "has_zeros"
        ),
        Tensor("bias", "activations", ("out_features",), "gate's, then up's", "has_bias"),
    ),
    outputs=(Tensor("y", "activations", ("...", "y_features"), ""),),
    dimensions=_linear_dimensions,
    conflicts=_linear_conflicts,
)


def _attention_dimensions(attributes: Attributes) -> dict[str, int]:
    heads, kv_heads = int(attributes["num_heads"]), int(attributes["num_kv_heads"])
    size = int(attributes["head_size"])
    return {
        "num_kv_heads": kv_heads,
        "head_size": size,
        "q_features": heads * size,
        "kv_features": kv_heads * size,
        "qkv_features": (heads + 2 * kv_heads) * size,
        "half_rotary": int(attributes["rotary_size"]) // 2,
    }


def _attention_conflicts(attributes: Attributes) -> str:
    heads, kv_heads = attributes["num_heads"], attributes["num_kv_heads"]
    rotary, size = attributes["rotary_size"], attributes["head_size"]
    if heads % kv_heads:
        return f"num_heads is {heads}, must be a multiple of num_kv_heads {kv_heads}"
    if rotary % 2 or rotary > size:
        return f"rotary_size is {rotary}, must be even and at most head_size {size}"
    return ""


_MERGED = "q's heads, k's, v's"
_TABLE = "scaling is in it"
_CACHE = ("batch", "num_kv_heads", "context", "head_size")
_CACHE_SCALES = ("batch", "num_kv_heads", "context")

CACHED_ATTENTION = Op(
    name="CachedAttention",
    meaning="rotary embedding, append to the KV cache, causal grouped-query attention over it",
    attributes=(
        Attribute("num_heads", "a multiple of num_kv_heads", minimum=1, maximum=1024),
        Attribute("num_kv_heads", "heads of k, v and the cache", minimum=1, maximum=1024),
        Attribute("head_size", "channels of a head", choices=(32, 64, 96, 128, 256)),
        Attribute(
            "rotary_size",
            "channels of a head that are rotated; channel i pairs with i + rotary_size / 2",
            minimum=0,
            maximum=256,
        ),
        Attribute("scale", "multiplies q·k", type="float", minimum=2.0**-20, maximum=1e6),
        Attribute(
            "window",
            "positions that a query sees, itself included; 0: all",
            default=0,
            minimum=0,
            maximum=2**30,
        ),
        Attribute(
            "soft_cap",
            "scores become cap * tanh(score / cap); 0: none",
            type="float",
            default=0.0,
            minimum=0.0,
            maximum=1e6,
        ),
        Attribute("merged_qkv", "1: one input qkv for q, k and v", default=0, choices=_FLAG),
        Attribute("qk_norm", "1: RMSNorm of q's and k's heads", default=0, choices=_FLAG),
        Attribute(
            "norm_eps",
            "of qk_norm",
            type="float",
            default=1e-6,
            minimum=0.0,
            maximum=1.0,
        ),
        Attribute("int8_cache", "1: int8, a scale per position", default=0, choices=_FLAG),
        Attribute(
            "aliased_cache",
            "1: present is past's memory, for TensorRT itself; needs the preview feature "
            "ALIASED_PLUGIN_IO_10_03",
            default=0,
            choices=_FLAG,
        ),
    ),
    inputs=(
        Tensor("qkv", "activations", ("batch", "tokens", "qkv_features"), _MERGED, "merged_qkv"),
        Tensor("q", "activations", ("batch", "tokens", "q_features"), "", "!merged_qkv"),
        Tensor("k", "activations", ("batch", "tokens", "kv_features"), "", "!merged_qkv"),
        Tensor("v", "activations", ("batch", "tokens", "kv_features"), "", "!merged_qkv"),
        Tensor("past_length", "int64", ("batch",), "filled positions of the cache"),
        Tensor("cosine", "float32", ("positions", "half_rotary"), _TABLE, "rotary_size"),
        Tensor("sine", "float32", ("positions", "half_rotary"), _TABLE, "rotary_size"),
        Tensor("past_key", "cache", _CACHE, ""),
        Tensor("past_value", "cache", _CACHE, ""),
        Tensor("q_norm", "activations", ("head_size",), "RMSNorm weight", "qk_norm"),
        Tensor("k_norm", "activations", ("head_size",), "RMSNorm weight", "qk_norm"),
        Tensor("past_key_scales", "float32", _CACHE_SCALES, "", "int8_cache"),
        Tensor("past_value_scales", "float32", _CACHE_SCALES, "", "int8_cache"),
    ),
    outputs=(
        Tensor("y", "activations", ("batch", "tokens", "q_features"), ""),
        Tensor("present_key", "cache", _CACHE, "", alias="past_key"),
        Tensor("present_value", "cache", _CACHE, "", alias="past_value"),
        Tensor("present_key_scales", "float32", _CACHE_SCALES, "", "int8_cache", "past_key_scales"),
        Tensor(
            "present_value_scales", "float32", _CACHE_SCALES, "", "int8_cache", "past_value_scales"
        ),
    ),
    dimensions=_attention_dimensions,
    conflicts=_attention_conflicts,
    at_least=(("positions", "context"),),
)

OPS = {op.name: op for op in (W4A16_LINEAR, CACHED_ATTENTION)}
