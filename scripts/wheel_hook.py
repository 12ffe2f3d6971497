"""What makes a platform wheel of the ordinary one: scripts/build_wheel sets both variables.

    AWQ_EDGE_WHEEL_KERNELS   the library that the wheel carries
    AWQ_EDGE_WHEEL_PLATFORM  the platform tag that is true of it

Without them the wheel is pure, and carries the CUDA sources alone.
"""

from __future__ import annotations

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        library = os.environ.get("AWQ_EDGE_WHEEL_KERNELS")
        if not library or version == "editable":
            return
        build_data["force_include"][library] = "awq_edge/kernels/lib/libawq_edge_kernels.so"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{os.environ['AWQ_EDGE_WHEEL_PLATFORM']}"
