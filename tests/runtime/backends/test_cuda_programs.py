"""Random programs of every form on the host: what the benchmark runs, and the GPU tests compare."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from awq_edge.runtime.backends.cuda.program import CudaProgram  # noqa: E402

from .host_kernels import HostDevice, HostKernels  # noqa: E402
from .programs import HEADS, SHAPE, VARIANTS, Runner, random_program, small_program  # noqa: E402

IDS = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], 40).tolist()
# Of the largest logit: the same arithmetic on other numbers of rows (NumPy adds differently).
TOLERANCES = {"float16": 5e-3, "bfloat16": 4e-2}


@pytest.mark.parametrize("name", [*VARIANTS, *HEADS])
def test_steps_and_prefill_agree(name: str) -> None:
    variant = VARIANTS.get(name, {"group_size": 64})
    program, _, weights = small_program(HEADS.get(name), **variant)
    runner = Runner(program, weights, HostDevice(), HostKernels())
    whole = runner.prefill(IDS)
    assert np.isfinite(whole).all() and 0.3 < np.abs(whole).max() < 100
    runner.length = 0
    runner.prefill(IDS[:33])
    limit = TOLERANCES[variant.get("dtype", "float16")] * np.abs(whole).max()
    for position in range(33, 40):
        assert np.abs(runner.step(IDS[position]) - whole[position]).max() < limit


def test_a_program_survives_json() -> None:
    for variant in VARIANTS.values():
        program, _, _ = small_program(**variant)
        assert CudaProgram.model_validate_json(program.model_dump_json()) == program


def test_random_bytes_have_the_spread_that_they_should() -> None:
    """What the benchmark runs on: weights without bias, activations of order one."""
    script = random_program()
    shape = script.Shape(256, 256, 512, 3, 4, 2, 64, 96)
    for bits in (3, 4, 8):
        program = script.random_program(shape, script.Variant(bits=bits))
        block = torch.zeros(program.weight_bytes, dtype=torch.uint8)
        script.fill_random(program, block)
        runner = Runner(program, block.numpy(), HostDevice(), HostKernels())
        logits = runner.prefill(IDS)
        assert 0.5 < logits.std() < 3 and abs(logits.mean()) < 0.5
