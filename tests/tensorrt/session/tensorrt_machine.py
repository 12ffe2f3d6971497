"""A GPU with an engine of a tiny decoder, all of it fakes, and a TensorRT session on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from awq_edge.artifacts.directories import Bundle, BundleManifest
from awq_edge.runtime.session import SessionOptions
from awq_edge.tensorrt.session.session import TensorrtSession
from tests.device.fake_device import FakeLayer

from .fake_tensorrt import FakeEngine, FakeSource, Range, TinyModel, fake_module

VOCAB, CONTEXT, CHUNK = 50, 96, 24
COPY = 1 << 20
MODEL = TinyModel(VOCAB, layers=2, heads=2, size=8)
DECODE, PREFILL = Range((1, 4), rows=4), Range((5, 32), rows=6)
IDS = [int(each) for each in np.random.default_rng(0).integers(0, VOCAB, CONTEXT)]
EXPECTED = MODEL.expected(IDS)
# Cache and logits are float16 on both sides but for the logits that are expected: 2^-11 of what is
# at most 20. A wrong position, id or mask is off by more than 1.
TOLERANCE = 0.05


def manifest(runtime: str = "tensorrt-rtx", **changes: Any) -> BundleManifest:
    values: dict[str, Any] = {
        "awq_edge_version": "0",
        "commit": None,
        "model_name": "fake",
        "model_type": "llama",
        "runtime": runtime,
        "graph": "model.onnx",
        "weights": "model.onnx.data",
        "context": CONTEXT,
        "prefill_chunk": CHUNK,
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_size": 8,
        "activation_dtype": "float16",
        "method": "rtn",
        "bits": 4,
        "group_size": 128,
        "scheme": "asymmetric",
        "lm_head_bits": 4,
        "bos_token_id": None,
        "eos_token_ids": (),
        "part_bytes": {"blocks": 1000},
        "bytes_per_token": 1000,
        "unquantized": {},
        "source": {},
        "files": {},
    }
    return BundleManifest(**values | changes)


@dataclass
class Machine:
    """A GPU with an engine, and what is opened on it. options: of the engine."""

    folder: Path
    layer: FakeLayer = field(default_factory=FakeLayer)
    rtx: bool = True
    profiles: tuple[Range, ...] = (DECODE, PREFILL)
    context: int | tuple[int, int] = CONTEXT
    options: dict[str, Any] = field(default_factory=dict)
    kernel_cache: Path | None = None
    change: Any = None

    def open(self, options: SessionOptions | None = None, **changes: Any) -> TensorrtSession:
        file = self.folder / "model.engine"
        file.write_bytes(b"an engine")
        self.engine = FakeEngine(
            self.layer, MODEL, self.profiles, self.context, rtx=self.rtx, **self.options
        )
        if self.change is not None:
            self.change(self.engine)
        runtime = "tensorrt-rtx" if self.rtx else "tensorrt"
        return TensorrtSession(
            Bundle(self.folder, manifest(runtime, **changes)),
            options or SessionOptions(),
            self.layer,
            fake_module(rtx=self.rtx),
            FakeSource(file, self.engine, self.kernel_cache),
        )


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether logits are the expected ones."""
    assert found.dtype == np.float32
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() < TOLERANCE)
