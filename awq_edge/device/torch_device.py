"""The torch device of a `--device` flag. Needs the [host] extra."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from awq_edge.device.cpu import describe_cpu
from awq_edge.errors import ConfigError, RuntimeUnavailableError


def torch_device(name: str) -> torch.device:
    """The device of "cpu", "cuda" or "cuda:N".

    Raises ConfigError for another name, RuntimeUnavailableError where torch sees no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: allowed values: cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: allowed values: cpu, cuda, cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise RuntimeUnavailableError(
                f"--device {name}: torch {torch.__version__} sees {count} CUDA device(s); "
                "use --device cpu"
            )
    return device


def device_name(device: torch.device) -> str:
    """The device in words: the GPU's or the CPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return describe_cpu().name


@contextmanager
def float32_products(device: torch.device, *, reduced: bool) -> Iterator[None]:
    """Multiply float32 matrices with mantissas cut to fewer bits where the device is several times
    as fast with them, or in full: TF32's 10 bits on a GPU, bfloat16's 7 on a CPU that has them."""
    if device.type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = reduced
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    else:
        enabled = reduced and has_bfloat16_products(device)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            yield


@functools.cache
def has_bfloat16_products(device: torch.device) -> bool:
    """True where bfloat16 matrices are multiplied faster than float32: on a GPU since Ampere, on a
    CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
