"""Small random programs in every form, and a runner that drives a model of one on any device."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from awq_edge.runtime.backends.cuda.device import Device
from awq_edge.runtime.backends.cuda.executor import Executor
from awq_edge.runtime.backends.cuda.operands import Kernels

_SCRIPT = Path(__file__).parents[3] / "scripts" / "random_program.py"
CONTEXT = 96
MAX_ROWS = 32


def random_program() -> Any:
    """scripts/random_program.py as a module; the test is skipped where it is not there."""
    if not _SCRIPT.exists():
        pytest.skip(reason="scripts/ is not beside the tests")
    spec = importlib.util.spec_from_file_location("random_program", _SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["random_program"] = module
    spec.loader.exec_module(module)
    return module


# Sizes that end within a tile and a block; grouped-query attention.
SHAPE = {
    "vocab_size": 200,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_size": 64,
    "context": CONTEXT,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "4 bits": {"group_size": 64},
    "3 bits": {"bits": 3, "group_size": 32},
    "8 bits, symmetric": {"bits": 8, "group_size": 64, "scheme": "symmetric"},
    "bias, head norms": {"group_size": 32, "bias": True, "head_norms": True},
    "window": {"group_size": 32, "window": 7},
    "apart": {"group_size": 64, "merged": False, "bias": True},
    "dense": {"dense": True, "lm_head_bits": 16, "bias": True},
    "dense, apart": {"dense": True, "merged": False, "lm_head_bits": 4},
    "bfloat16": {"group_size": 64, "dtype": "bfloat16"},
}
HEADS: dict[str, dict[str, int]] = {
    "head size 32": {"head_size": 32},
    "head size 96": {"head_size": 96},
    "head size 128, 8 to 1": {"head_size": 128, "num_heads": 8, "num_kv_heads": 1},
    "head size 256": {"head_size": 256, "num_heads": 2, "num_kv_heads": 2},
}


def small_program(
    sizes: dict[str, int] | None = None, **variant: Any
) -> tuple[Any, dict[str, torch.Tensor], np.ndarray]:
    """A program, its tensors on the host, and the block that they lie in."""
    script = random_program()
    made = script.Variant(**variant)
    program = script.random_program(script.Shape(**(SHAPE | (sizes or {}))), made)
    block = torch.zeros(program.weight_bytes, dtype=torch.uint8)
    return program, script.fill_quantized(program, block, made.scheme), block.numpy()


class Runner:
    """A program on a device. weights: its weight file."""

    def __init__(self, program: Any, weights: np.ndarray, device: Device, kernels: Kernels) -> None:
        self.device = device
        with device.scope():
            address = device.zeros(program.weight_bytes)
            device.upload(address, weights)
            self.model = Executor(
                program, address, kernels, device, context=CONTEXT, max_rows=MAX_ROWS
            )
            self._logits = device.host_zeros((MAX_ROWS, program.vocab_size), np.float32)
            device.synchronize()
        self.replay = device.capture(self.model.step)
        self.length = 0

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after each id: float32 [len(ids), vocab]."""
        model, found = self.model, []
        for start in range(0, len(ids), MAX_ROWS):
            chunk = np.array(ids[start : start + MAX_ROWS])
            with self.device.scope():
                self._set_state(0)
                self.device.upload(model.ids, chunk)
                self.device.upload(model.wanted, np.arange(len(chunk)))
                model.run(len(chunk))
                model.row_logits(len(chunk))
                found.append(self._read(len(chunk)))
            self.length += len(chunk)
        return np.concatenate(found)

    def step(self, token: int, *, replayed: bool = True) -> np.ndarray:
        """Logits after one more id: float32 [vocab]."""
        with self.device.scope():
            self._set_state(token)
            if replayed:
                self.replay()
            else:
                self.model.step()
            self.length += 1
            return self._read(1)[0]

    def _set_state(self, token: int) -> None:
        self.device.upload(self.model.state_input, np.array([self.length, 0, token, 0]))

    def _read(self, rows: int) -> np.ndarray:
        self.device.download(self._logits[:rows], self.model.logits)
        self.device.synchronize()
        return self._logits[:rows].copy()
