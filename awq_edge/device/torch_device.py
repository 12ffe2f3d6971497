"""The torch device of a `--device` flag. Needs the [host] extra."""

from __future__ import annotations

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
def tf32_products(allowed: bool) -> Iterator[None]:
    """Allow or forbid CUDA to multiply float32 matrices with mantissas cut to 10 bits, which is
    several times as fast. No effect on a CPU."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
