"""The cuda backend on a GPU: against the kernels' interface in NumPy, and against onnxruntime.

The comparison with onnxruntime needs what `scripts/cuda_reference.py` makes: its folder in the
variable AWQ_EDGE_CUDA_REFERENCE, or an environment that can make it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
if not torch.cuda.is_available():
    pytest.skip(reason="there is no NVIDIA GPU", allow_module_level=True)

from awq_edge.artifacts.directories import Bundle  # noqa: E402
from awq_edge.kernels.kernels import KernelLibrary, load_kernels  # noqa: E402
from awq_edge.runtime.backends import open_session  # noqa: E402
from awq_edge.runtime.backends.cuda.device_torch import CudaDevice  # noqa: E402
from awq_edge.runtime.session import SessionOptions  # noqa: E402
from tests.runtime.backends.host_kernels import HostDevice, HostKernels  # noqa: E402
from tests.runtime.backends.programs import HEADS, VARIANTS, Runner, small_program  # noqa: E402

pytestmark = pytest.mark.gpu
# Of the largest logit. Both sides round activations at the same places to float16 (bfloat16) and
# add in other orders: a rounding that falls the other way is 2**-11 (2**-8), some ten a layer.
TOLERANCES = {"float16": 1e-2, "bfloat16": 6e-2}
LEAST_AGREEMENT = 0.99  # of the likeliest token over 2,000 tokens, with onnxruntime in float32
LARGEST_PERPLEXITY_CHANGE = 1e-3
REPLAYS = 1000


@pytest.fixture(scope="module")
def kernels() -> KernelLibrary:
    return load_kernels()


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return CudaDevice()


def ids_of(count: int) -> list[int]:
    return np.random.default_rng(1).integers(0, 200, count).tolist()


def check_against_numpy(runner: Runner, reference: Runner, limit: float) -> None:
    ids = ids_of(76)
    expected = reference.prefill(ids[:70])
    error = np.abs(runner.prefill(ids[:70]) - expected).max() / np.abs(expected).max()
    assert error < limit, f"prefill: {error:.2e}"
    for token in ids[70:]:
        wanted = reference.step(token)
        error = np.abs(runner.step(token) - wanted).max() / np.abs(wanted).max()
        assert error < limit, f"decode: {error:.2e}"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_form_of_a_program(name: str, device: CudaDevice, kernels: KernelLibrary) -> None:
    variant = VARIANTS[name]
    program, _, weights = small_program(**variant)
    check_against_numpy(
        Runner(program, weights, device, kernels),
        Runner(program, weights, HostDevice(), HostKernels()),
        TOLERANCES[variant.get("dtype", "float16")],
    )


@pytest.mark.parametrize("name", HEADS)
def test_every_head_size(name: str, device: CudaDevice, kernels: KernelLibrary) -> None:
    program, _, weights = small_program(HEADS[name], group_size=64)
    check_against_numpy(
        Runner(program, weights, device, kernels),
        Runner(program, weights, HostDevice(), HostKernels()),
        TOLERANCES["float16"],
    )


def test_a_replayed_step_has_the_bits_of_a_launched_one(
    device: CudaDevice, kernels: KernelLibrary
) -> None:
    """The same step again and again, at the same position: nothing is left over from one to the
    next, and nothing depends on timing."""
    program, _, weights = small_program(group_size=64)
    runner = Runner(program, weights, device, kernels)
    runner.prefill(ids_of(40))
    expected = runner.step(7, replayed=False)
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0.1
    state = np.array([40, 0, 7, 0])
    wanted = torch.from_numpy(expected).to("cuda")
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    with device.scope():
        logits = device.octets(runner.model.logits, (4 * len(expected),)).view(torch.float32)
        for _ in range(REPLAYS):
            device.upload(runner.model.state_input, state)
            logits.fill_(float("nan"))
            runner.replay()
            differing += (logits != wanted).sum()
        device.synchronize()
    assert int(differing) == 0


def test_a_corrupted_weight_is_seen(device: CudaDevice, kernels: KernelLibrary) -> None:
    """The comparison would notice one wrong scale in one linear."""
    program, tensors, weights = small_program(group_size=64)
    reference = Runner(program, weights.copy(), HostDevice(), HostKernels())
    tensors["model.layers.1.mlp.down_proj.scales"][0, 0, 0, 0] *= 40
    with pytest.raises(AssertionError, match=r"prefill: \d"):
        check_against_numpy(
            Runner(program, weights, device, kernels), reference, TOLERANCES["float16"]
        )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, and what onnxruntime makes of the same checkpoint."""
    given = os.environ.get("AWQ_EDGE_CUDA_REFERENCE")
    if given:
        return Path(given)
    script = Path(__file__).parents[4] / "scripts" / "cuda_reference.py"
    if not script.exists():
        pytest.skip(reason="scripts/ is not beside the tests")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime, or AWQ_EDGE_CUDA_REFERENCE")
    pytest.importorskip("onnx_graphsurgeon", reason="needs the [host] extra")
    folder = tmp_path_factory.mktemp("reference") / "demo"
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder


def session_of(reference: Path) -> Any:
    return open_session(Bundle.open(reference / "bundle"), SessionOptions())


def test_agreement_with_onnxruntime(reference: Path) -> None:
    """Teacher-forced over 2,000 tokens: the likeliest token, and the perplexity."""
    known = np.load(reference / "reference.npz")
    assert known["ids"].size >= 2000
    agreeing, losses = [], []
    with session_of(reference) as session:
        for ids, likeliest in zip(known["ids"], known["likeliest"], strict=True):
            session.reset()
            logits = session.logits(ids.tolist(), range(len(ids))).astype(np.float64)
            agreeing.append(logits.argmax(axis=1) == likeliest)
            shifted = logits - logits.max(axis=1, keepdims=True)
            log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
            losses.append(-log_shares[np.arange(len(ids) - 1), ids[1:]])
    perplexity = float(np.exp(np.mean(losses)))
    expected = float(np.exp(known["losses"].mean()))
    share = float(np.mean(agreeing))
    print(f"agreement {share:.4%}, perplexity {perplexity:.5f}, onnxruntime's {expected:.5f}")
    assert share >= LEAST_AGREEMENT
    assert abs(perplexity / expected - 1) <= LARGEST_PERPLEXITY_CHANGE


def test_decoding_agrees_with_onnxruntime(reference: Path) -> None:
    """Token by token through the captured step, as generation does it."""
    known = np.load(reference / "reference.npz")
    ids, likeliest = known["ids"][0].tolist(), known["likeliest"][0]
    with session_of(reference) as session:
        session.prefill(ids[:500])
        found = [int(session.decode(token).argmax()) for token in ids[500:]]
    assert (np.array(found) == likeliest[500:]).mean() >= LEAST_AGREEMENT


def test_greedy_is_decode_with_the_largest_logit(reference: Path) -> None:
    ids = np.load(reference / "reference.npz")["ids"][0, :32].tolist()
    with session_of(reference) as session:
        token, expected = int(session.prefill(ids).argmax()), []
        first = token
        for _ in range(200):
            token = int(session.decode(token).argmax())
            expected.append(token)
        after = session.decode(token).copy()
        session.reset()
        session.prefill(ids)
        assert session.greedy(first, 200) == expected
        np.testing.assert_array_equal(session.decode(token), after)


def test_memory_is_what_the_device_gave(reference: Path) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with session_of(reference) as session:
        memory = session.memory
        taken = torch.cuda.memory_allocated() - before
    known = memory.weights + memory.kv_cache + memory.workspace
    # torch rounds allocations up to 512 bytes, and cuBLAS has a workspace of 8 to 32 MB.
    assert known <= taken <= known + 48_000_000
