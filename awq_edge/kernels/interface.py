"""plugins/include/awq_edge_kernels.h for ctypes: constants, structs, and the table of functions.

The header is the specification; names are its names without the prefix. A test compares the two:
every function, and the size and offset of every field with what a C compiler says.
"""

from __future__ import annotations

from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
)
from enum import IntEnum
from typing import Any

ABI_VERSION = 1
LAYOUT_VERSION = 1
# The first bytes of a workspace, zeroed once before its first use.
COUNTER_BYTES = 65536


class Status(IntEnum):
    OK = 0
    INVALID_ARGUMENT = 1
    UNSUPPORTED = 2
    WORKSPACE = 3
    CUDA_ERROR = 4
    NO_LIBRARY = 5


class Dtype(IntEnum):
    FLOAT16 = 0
    BFLOAT16 = 1
    INT8 = 2


class Epilogue(IntEnum):
    NONE = 0
    SILU_MUL = 1


class Tactic(IntEnum):
    AUTO = 0
    DECODE = 1
    GEMM = 2
    CUBLASLT = 3


class W4A16Weight(Structure):
    """awq_edge_w4a16_weight: one quantized linear. Pointers are device addresses or None."""

    _fields_ = (
        ("bits", c_int32),
        ("group_size", c_int32),
        ("in_features", c_int32),
        ("out_features", c_int32),
        ("dtype", c_int32),
        ("epilogue", c_int32),
        ("qweight", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("bias", c_void_p),
    )


class AttentionParameters(Structure):
    """awq_edge_attention: one call of rotary embedding, cache append and attention."""

    _fields_ = (
        ("dtype", c_int32),
        ("kv_dtype", c_int32),
        ("batch", c_int32),
        ("tokens", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_size", c_int32),
        ("rotary_size", c_int32),
        ("context", c_int32),
        ("window", c_int32),
        ("scale", c_float),
        ("soft_cap", c_float),
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("q_stride", c_int64),
        ("k_stride", c_int64),
        ("v_stride", c_int64),
        ("past_length", c_void_p),
        ("cosine", c_void_p),
        ("sine", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("norm_eps", c_float),
        ("key_cache", c_void_p),
        ("value_cache", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("y", c_void_p),
    )


class Sampling(Structure):
    """awq_edge_sampling: how the next token is chosen."""

    _fields_ = (
        ("temperature", c_float),
        ("top_p", c_float),
        ("top_k", c_int32),
        ("seed", c_uint64),
    )


_SIZE = POINTER(c_size_t)
_WEIGHT = POINTER(W4A16Weight)
_ATTENTION = POINTER(AttentionParameters)
_SAMPLING = POINTER(Sampling)
_DEVICE = c_void_p
_STREAM = c_void_p

# Functions that return a Status, with the types of their arguments. Structs are passed as they
# are, tensors as their addresses.
FUNCTIONS: dict[str, tuple[type[Any], ...]] = {
    "awq_edge_w4a16_workspace": (_WEIGHT, c_int32, c_int32, _SIZE),
    "awq_edge_w4a16_linear": (
        *(_WEIGHT, _DEVICE, _DEVICE, c_int32, c_int32),
        *(_DEVICE, c_size_t, _STREAM),
    ),
    "awq_edge_w4a16_dequantize": (_WEIGHT, _DEVICE, _STREAM),
    "awq_edge_cached_attention_workspace": (_ATTENTION, _SIZE),
    "awq_edge_cached_attention": (_ATTENTION, _DEVICE, c_size_t, _STREAM),
    "awq_edge_rms_norm": (
        *(_DEVICE, _DEVICE, _DEVICE, _DEVICE),
        *(c_int32, c_int32, c_float, c_int32, _STREAM),
    ),
    "awq_edge_silu_mul": (_DEVICE, _DEVICE, c_int32, c_int32, c_int32, _STREAM),
    "awq_edge_embedding": (
        *(_DEVICE, _DEVICE, _DEVICE),
        *(c_int32, c_int32, c_int32, c_int32, _STREAM),
    ),
    "awq_edge_gather_rows": (_DEVICE, _DEVICE, _DEVICE, c_int32, c_int32, c_int32, _STREAM),
    "awq_edge_sample": (
        *(_DEVICE, _SAMPLING, _DEVICE, _DEVICE, c_int32, c_int32, c_int32),
        *(_DEVICE, c_size_t, _STREAM),
    ),
    "awq_edge_sample_workspace": (c_int32, c_int32, _SIZE),
    "awq_edge_advance": (_DEVICE, c_int32, c_int64, _STREAM),
    "awq_edge_clear_counters": (_DEVICE, _STREAM),
    "awq_edge_copy": (_DEVICE, _DEVICE, c_size_t, _STREAM),
}

# Functions that cannot fail: (type of the result, types of the arguments).
QUERIES: dict[str, tuple[type[Any], tuple[type[Any], ...]]] = {
    "awq_edge_abi_version": (c_int, ()),
    "awq_edge_layout_version": (c_int, ()),
    "awq_edge_status_message": (c_char_p, (c_int,)),
    "awq_edge_last_error": (c_char_p, ()),
    "awq_edge_architectures": (c_char_p, ()),
}
