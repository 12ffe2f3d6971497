"""The operators W4A16Linear and CachedAttention of TensorRT's plugins: attributes, tensors, rules.

Names, dtypes and shapes stand here alone: cpp_tables.py makes tables of them that the C++ plugin is
compiled from, and a test holds docs/plugin.md to them. The meaning of the tensors is specified in
plugins/include/awq_edge_kernels.h, the packing of the weights in packing.py.
"""

from __future__ import annotations

from awq_edge.kernels.interface import (
    BITS,
    BLOCK_CHANNELS,
    GROUP_SIZES,
    HEAD_SIZES,
    LAYOUT_VERSION,
    MAX_ROWS,
    TILE_ROWS,
    Epilogue,
)
from awq_edge.tensorrt.op_contract import Attribute, Conflict, Op, Tensor

DOMAIN = "awq_edge"
# Attributes of every node, by which TensorRT's parser finds the creator.
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = ""

_FLAG = (0, 1)
_PAIRS = f"epilogue == {int(Epilogue.SILU_MUL)}"
_BLOCKS = f"(in_features + {BLOCK_CHANNELS - 1}) // {BLOCK_CHANNELS}"


W4A16_LINEAR = Op(
    name="W4A16Linear",
    meaning="y = x Wᵀ + bias for a quantized W = (codes - zeros) * scales",
    attributes=(
        Attribute("bits", "of a code", choices=BITS),
        Attribute(
            "group_size",
            "input channels that share a scale and a zero point",
            choices=GROUP_SIZES,
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
        Tensor("x", "activations", ("...", "in_features"), f"at most {MAX_ROWS} rows"),
        Tensor("qweight", "int32", ("tiles", "blocks", "words"), "packed codes, a constant"),
        Tensor("scales", "float16", ("tiles", "groups", "8", "2"), "packed, a constant"),
        Tensor(
            "zeros", "int32", ("tiles", "groups", "zero_words"), "packed, a constant", "has_zeros"
        ),
        Tensor("bias", "activations", ("out_features",), "gate's, then up's", "has_bias"),
    ),
    outputs=(Tensor("y", "activations", ("...", "y_features"), ""),),
    dimensions={
        "y_features": f"out_features // 2 if {_PAIRS} else out_features",
        "tiles": f"(out_features + {TILE_ROWS - 1}) // {TILE_ROWS}",
        "blocks": _BLOCKS,
        "words": "64 * bits",
        "groups": f"{_BLOCKS} * {BLOCK_CHANNELS} // group_size",
        "zero_words": "4 if bits == 8 else 2",
    },
    conflicts=(
        Conflict(
            "in_features % group_size != 0",
            "in_features is {in_features}, must be a multiple of group_size {group_size}",
        ),
        Conflict(
            f"{_PAIRS} and out_features % 2 != 0",
            "out_features is {out_features}, must be even for epilogue {epilogue}",
        ),
    ),
)


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
        Attribute("head_size", "channels of a head", choices=HEAD_SIZES),
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
    dimensions={
        "q_features": "num_heads * head_size",
        "kv_features": "num_kv_heads * head_size",
        "qkv_features": "(num_heads + 2 * num_kv_heads) * head_size",
        "half_rotary": "rotary_size // 2",
    },
    conflicts=(
        Conflict(
            "num_heads % num_kv_heads != 0",
            "num_heads is {num_heads}, must be a multiple of num_kv_heads {num_kv_heads}",
        ),
        Conflict(
            "rotary_size % 2 != 0 or rotary_size > head_size",
            "rotary_size is {rotary_size}, must be even and at most head_size {head_size}",
        ),
    ),
    at_least=(("positions", "context"),),
)

OPS = {op.name: op for op in (W4A16_LINEAR, CACHED_ATTENTION)}
