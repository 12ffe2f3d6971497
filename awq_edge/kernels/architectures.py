"""The GPUs that a build of the kernels is for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from awq_edge.errors import ConfigError

# Processor of a machine -> compute capabilities of the GPUs in such machines: those that its wheel
# has machine code for. 8.7: Jetson Orin, 11.0: Jetson Thor.
TARGETS_OF_MACHINE = {"x86_64": (80, 86, 89, 90, 120), "aarch64": (87, 110)}
# What the kernels are tuned for and CI compiles.
TARGETS = tuple(sorted(target for each in TARGETS_OF_MACHINE.values() for target in each))
# mma.m16n8k16 and cp.async begin here.
OLDEST = 80


def parse_architecture(text: str) -> int:
    """10 * major + minor of "8.7", "87" or "sm_87". Raises ConfigError."""
    match = re.fullmatch(r"(?:sm_)?(\d{1,2})\.?(\d)", text.strip())
    if match is None:
        raise ConfigError(f"--arch {text}: write a compute capability, such as 8.7, 87 or sm_87")
    return int(match[1] + match[2])


def select_architectures(
    requested: Sequence[str], gpus: Sequence[int], known: Sequence[int], cuda_version: str
) -> tuple[int, ...]:
    """The compute capabilities to compile for, ascending.

    requested: by the command line; where none are, `gpus`; where there are none, TARGETS as far as
    the toolkit knows them (CUDA 12.6 has no 12.0).
    gpus: compute capabilities of this machine.
    known: compute capabilities that nvcc of `cuda_version` compiles for.

    Raises ConfigError for one that is too old for the kernels or too new for the toolkit.
    """
    wanted = [parse_architecture(text) for text in requested] or list(gpus)
    if not wanted:
        return tuple(target for target in TARGETS if target in known)
    for architecture in wanted:
        if architecture < OLDEST:
            raise ConfigError(
                f"compute capability {dotted(architecture)} is too old: the kernels need "
                f"{dotted(OLDEST)} (Ampere) or newer"
            )
        if architecture not in known:
            raise ConfigError(
                f"CUDA {cuda_version} does not compile for compute capability "
                f"{dotted(architecture)}, only for {', '.join(map(dotted, known))}; install a "
                "CUDA toolkit that does, or give another --arch"
            )
    return tuple(sorted(set(wanted)))


def dotted(architecture: int) -> str:
    """87 -> "8.7"."""
    return f"{architecture // 10}.{architecture % 10}"
