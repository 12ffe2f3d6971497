"""The demo model's bundle for runtime cuda, with the kernels' interface in NumPy, against
onnxruntime: float16 activations change neither what is likeliest nor the perplexity.

The same figures from the kernels themselves: tests/runtime/backends/gpu/test_cuda.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import awq_edge
from awq_edge.runtime.backends.cuda.session import CudaSession
from awq_edge.runtime.session import SessionOptions
from tests.runtime.backends.host_kernels import HostDevice, HostKernels

TOKENS = 600
LEAST_AGREEMENT = 0.99
LARGEST_PERPLEXITY_CHANGE = 1e-3


def losses(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    found: np.ndarray = -shares[np.arange(len(ids) - 1), ids[1:]]
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    awq_edge.quantize("demo", folder, awq_edge.load_recipe(method="rtn"))
    return folder


def test_the_demo_model(checkpoint: Path, tmp_path: Path) -> None:
    text = (Path(awq_edge.__file__).parent / "data" / "calibration.txt").read_text("utf-8")
    onnx = awq_edge.export(checkpoint, tmp_path / "onnx", awq_edge.load_recipe(accuracy_level=0))
    bundle = awq_edge.export(checkpoint, tmp_path / "cuda", awq_edge.load_recipe(runtime="cuda"))
    with awq_edge.load(onnx.path) as model:
        ids = model.tokenizer.encode(text[-8000:])[:TOKENS]
        assert len(ids) == TOKENS
        expected = model.session.logits(ids, range(TOKENS))
    with CudaSession(bundle, SessionOptions(), HostDevice(), HostKernels()) as session:
        found = session.logits(ids, range(TOKENS))  # type: ignore[attr-defined]
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= LEAST_AGREEMENT
    change = np.exp(losses(found, ids).mean() - losses(expected, ids).mean()) - 1
    assert abs(change) <= LARGEST_PERPLEXITY_CHANGE
