"""The C interface of the kernel library for ctypes, as plugins/include/awq_edge_kernels.h has it.

Names are the header's without the prefix. Numbers, fields and arguments are read from it, so that
they are written once; what each function computes is specified there.
"""

from __future__ import annotations

from ctypes import Structure, c_char_p
from enum import IntEnum

from awq_edge.kernels.header import read_kernel_header

_HEADER = read_kernel_header()
_NUMBERS = _HEADER.numbers

ABI_VERSION = _NUMBERS["ABI_VERSION"]
LAYOUT_VERSION = _NUMBERS["LAYOUT_VERSION"]
# The first bytes of a workspace, zeroed once before its first use.
COUNTER_BYTES = _NUMBERS["COUNTER_BYTES"]
# Rows of x in one call of the quantized linear.
MAX_ROWS = _NUMBERS["MAX_ROWS"]
# Rows up to which each byte of the weight is read once.
DECODE_ROWS = _NUMBERS["DECODE_ROWS"]

# Likeliest tokens of a row whose logarithms one call gives.
MAX_TOP = _NUMBERS["MAX_TOP"]

# Sizes that kernels are compiled for.
BITS = (3, 4, 8)
GROUP_SIZES = (32, 64, 128)
HEAD_SIZES = (32, 64, 96, 128, 256)
# Rows and input channels of the units that weights are packed in (kernels/w4a16_layout.h).
TILE_ROWS = 16
BLOCK_CHANNELS = 128


class Status(IntEnum):
    """awq_edge_status: the result of a call."""

    OK = _NUMBERS["OK"]
    INVALID_ARGUMENT = _NUMBERS["INVALID_ARGUMENT"]
    UNSUPPORTED = _NUMBERS["UNSUPPORTED"]
    WORKSPACE = _NUMBERS["WORKSPACE"]
    CUDA_ERROR = _NUMBERS["CUDA_ERROR"]
    NO_LIBRARY = _NUMBERS["NO_LIBRARY"]


class Dtype(IntEnum):
    """awq_edge_dtype: of activations; INT8 of the cache, FLOAT32 of logits."""

    FLOAT16 = _NUMBERS["FLOAT16"]
    BFLOAT16 = _NUMBERS["BFLOAT16"]
    INT8 = _NUMBERS["INT8"]
    FLOAT32 = _NUMBERS["FLOAT32"]


class NormKind(IntEnum):
    """awq_edge_norm_kind: the statistics of a norm."""

    RMS = _NUMBERS["NORM_RMS"]
    LAYER = _NUMBERS["NORM_LAYER"]


class Activation(IntEnum):
    """awq_edge_activation_kind: a function of single values."""

    SILU = _NUMBERS["ACTIVATION_SILU"]
    GELU = _NUMBERS["ACTIVATION_GELU"]
    GELU_TANH = _NUMBERS["ACTIVATION_GELU_TANH"]
    RELU = _NUMBERS["ACTIVATION_RELU"]
    RELU_SQUARED = _NUMBERS["ACTIVATION_RELU_SQUARED"]


class Epilogue(IntEnum):
    """awq_edge_epilogue: the step behind a linear, in the same kernel."""

    NONE = _NUMBERS["EPILOGUE_NONE"]
    SILU_MUL = _NUMBERS["EPILOGUE_SILU_MUL"]
    GELU_MUL = _NUMBERS["EPILOGUE_GELU_MUL"]
    GELU_TANH_MUL = _NUMBERS["EPILOGUE_GELU_TANH_MUL"]
    RELU = _NUMBERS["EPILOGUE_RELU"]
    GELU = _NUMBERS["EPILOGUE_GELU"]
    RELU_SQUARED = _NUMBERS["EPILOGUE_RELU_SQUARED"]

    @property
    def activation(self) -> Activation | None:
        """The function that it applies, to the gate where there is one; None for NONE."""
        return None if self is Epilogue.NONE else Activation[self.name.removesuffix("_MUL")]

    @property
    def paired(self) -> bool:
        """True where rows of gate and up are interleaved and half of the outputs is left."""
        return self.name.endswith("_MUL")


class Tactic(IntEnum):
    """awq_edge_tactic: the kernel that computes a linear."""

    AUTO = _NUMBERS["TACTIC_AUTO"]
    DECODE = _NUMBERS["TACTIC_DECODE"]
    GEMM = _NUMBERS["TACTIC_GEMM"]
    CUBLASLT = _NUMBERS["TACTIC_CUBLASLT"]


class W4A16Weight(Structure):
    """awq_edge_w4a16_weight: one quantized linear. Pointers are device addresses or None."""

    _fields_ = _HEADER.fields("awq_edge_w4a16_weight")


class DenseWeight(Structure):
    """awq_edge_dense_weight: one linear of 16 bits. Pointers are device addresses or None."""

    _fields_ = _HEADER.fields("awq_edge_dense_weight")


class Routing(Structure):
    """awq_edge_routing: the choice of a token's experts from the router's logits."""

    _fields_ = _HEADER.fields("awq_edge_routing")


class NormParameters(Structure):
    """awq_edge_norm: a norm, and the addition to the residual before it."""

    _fields_ = _HEADER.fields("awq_edge_norm")


class AttentionParameters(Structure):
    """awq_edge_attention: one call of rotary embedding, cache append and attention."""

    _fields_ = _HEADER.fields("awq_edge_attention")


class SamplingParameters(Structure):
    """awq_edge_sampling: how a row's token is chosen; an array of them lies in device memory."""

    _fields_ = _HEADER.fields("awq_edge_sampling")


class Sampler(Structure):
    """awq_edge_sampler: one call that chooses a token of each row."""

    _fields_ = _HEADER.fields("awq_edge_sampler")


_ALL = _HEADER.functions(
    {
        "awq_edge_w4a16_weight": W4A16Weight,
        "awq_edge_dense_weight": DenseWeight,
        "awq_edge_routing": Routing,
        "awq_edge_norm": NormParameters,
        "awq_edge_attention": AttentionParameters,
        "awq_edge_sampling": SamplingParameters,
        "awq_edge_sampler": Sampler,
    }
)
# Functions that cannot fail, by name: they return text, or a number and take nothing.
QUERIES = {name: types for name, types in _ALL.items() if types[0] is c_char_p or not types[1]}
# Functions that return a Status: name -> types of the arguments.
FUNCTIONS = {name: arguments for name, (_, arguments) in _ALL.items() if name not in QUERIES}
