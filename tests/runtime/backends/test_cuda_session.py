"""The cuda session around its model: calls, memory, options, and machines without a GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import awq_edge
from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import ArtifactError, ConfigError, ResourceError, RuntimeUnavailableError
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.backends.cuda.session import CudaSession
from awq_edge.runtime.memory import kv_cache_bytes, predict_memory
from awq_edge.runtime.session import SessionOptions
from tests.tiny_models import save_tiny_llama

from .host_kernels import HostDevice, HostKernels

torch = pytest.importorskip("torch", reason="needs torch")  # the bundle is made with it

IDS = [int(i) for i in np.random.default_rng(0).integers(4, 300, 60)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Quantized, lm_head too; prefill chunks of 32 tokens."""
    model = save_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny-llama", head_size=32)
    recipe = awq_edge.load_recipe("cuda").overridden({"export.prefill_chunk": 32})
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    return awq_edge.export(model, out, recipe.asking(method="rtn", group_size=32))


def opened(bundle: Bundle, options: SessionOptions | None = None, **device: Any) -> CudaSession:
    return CudaSession(bundle, options or SessionOptions(), HostDevice(**device), HostKernels())


@pytest.fixture
def session(bundle: Bundle) -> Iterator[CudaSession]:
    found = opened(bundle)
    yield found
    found.close()


def test_decode_and_prefill_agree_to_the_bit(session: CudaSession) -> None:
    """One token is the same pass, whichever way it comes in."""
    assert session.prefill_chunk == 32
    whole = session.logits(IDS, range(len(IDS)))
    session.reset()
    np.testing.assert_array_equal(session.prefill(IDS[:1]), whole[0])
    assert np.abs(session.prefill(IDS[1:50]) - whole[49]).max() < 2e-2
    decoded = session.decode(IDS[50]).copy()
    session.truncate(50)
    np.testing.assert_array_equal(session.prefill(IDS[50:51]), decoded)
    assert list(session.cached_ids) == IDS[:51]


def test_greedy_is_decode_with_the_largest_logit(session: CudaSession) -> None:
    token, expected = int(session.prefill(IDS[:40]).argmax()), []
    for _ in range(9):
        expected.append(token)
        token = int(session.decode(token).argmax())
    after = session.decode(token).copy()
    session.reset()
    first = int(session.prefill(IDS[:40]).argmax())
    found = session.greedy(first, 4)
    found += session.greedy(found[-1], 5)
    assert [first, *found] == [*expected, token]
    assert list(session.cached_ids) == [*IDS[:40], *expected]
    # The cache is the same to the bit, whatever capturing the loop's step has run.
    np.testing.assert_array_equal(session.decode(token), after)


def test_a_cache_that_comes_back_is_the_same(session: CudaSession) -> None:
    session.prefill(IDS[:30])
    copy = session.copy_cache()
    expected = session.decode(IDS[30]).copy()
    session.reset()
    session.prefill(IDS[5:50])
    session.restore_cache(copy)
    assert list(session.cached_ids) == IDS[:30]
    np.testing.assert_array_equal(session.decode(IDS[30]), expected)


def test_greedy_needs_room(session: CudaSession) -> None:
    with pytest.raises(ConfigError, match="count is 0"):
        session.greedy(5, 0)
    with pytest.raises(ResourceError, match="do not fit the context"):
        session.greedy(5, session.context + 1)
    assert session.past_length == 0


def test_a_decode_step_is_one_list_of_kernels(bundle: Bundle) -> None:
    kernels = HostKernels()
    with CudaSession(bundle, SessionOptions(), HostDevice(), kernels) as session:
        kernels.calls.clear()
        session.decode(5)  # type: ignore[attr-defined]
    layer = ["normalize", "w4a16_linear", "cached_attention", "w4a16_linear"]
    layer += ["normalize", "w4a16_linear", "w4a16_linear"]
    layers = layer * bundle.manifest.num_layers
    expected = ["embedding", *layers, "normalize", "w4a16_linear", "logits"]
    assert kernels.calls == [f"awq_edge_{name}" for name in expected]


def test_memory(bundle: Bundle) -> None:
    weights = bundle.manifest.files["model.weights"].size
    for context in (48, 96):
        found = opened(bundle, SessionOptions(context=context)).memory
        assert found.kv_cache == kv_cache_bytes(bundle.manifest, context)
        assert found.weights == weights
        # What is predicted leaves out the kernels' own, here the counters, and some rows of ids.
        predicted = predict_memory(bundle.manifest, context).activations
        assert found.workspace is not None
        assert 65536 <= found.workspace - predicted < 65536 + 2000
        assert found.on_device == weights + found.kv_cache + found.workspace
        assert found.device == 1 << 30


def test_logits_at_more_rows_than_are_computed_at_a_time(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = opened(bundle).logits(IDS, [0, 3, 4, 5, 31, 32, 59])
    for module in ("executor", "session"):
        monkeypatch.setattr(f"awq_edge.runtime.backends.cuda.{module}.LOGITS_ROWS", 2)
    found = opened(bundle).logits(IDS, [0, 3, 4, 5, 31, 32, 59])
    # NumPy's sums depend on the number of rows; rows that change places differ by about 1.
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert opened(bundle).logits(IDS[:40], []).shape == (0, bundle.manifest.vocab_size)


def test_a_closed_session_refuses(session: CudaSession) -> None:
    session.close()
    session.close()
    for call in (lambda: session.decode(4), lambda: session.greedy(4, 1)):
        with pytest.raises(ConfigError, match="closed"):
            call()
    assert (session.memory.weights, session.memory.kv_cache) == (0, 0)


def test_memory_that_the_device_does_not_have(bundle: Bundle) -> None:
    with pytest.raises(ResourceError, match=r"KV cache of 256 tokens need .* of host, .*B are"):
        opened(bundle, free=1_000)


def test_memory_that_runs_out_later(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB. GPU 0")

    monkeypatch.setattr("awq_edge.runtime.backends.cuda.session.load_weights", fails)
    with pytest.raises(ResourceError, match=r"ran out while .* was loaded \(CUDA out of memory\)"):
        opened(bundle)


def test_options(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="--threads 4: runtime cuda computes on the GPU"):
        opened(bundle, SessionOptions(threads=4))
    with pytest.raises(ConfigError, match="--context 257 is beyond"):
        opened(bundle, SessionOptions(context=257))


def copied(bundle: Bundle, folder: Path) -> Bundle:
    for file in bundle.path.iterdir():
        os.link(file, folder / file.name)
    return Bundle(folder, bundle.manifest)


def test_another_layout_of_weights(bundle: Bundle, tmp_path: Path) -> None:
    other = copied(bundle, tmp_path)
    program = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").unlink()
    (tmp_path / "model.json").write_text(json.dumps(program | {"layout_version": 7}))
    with pytest.raises(ArtifactError, match="layout version 7, these kernels read 1"):
        opened(other)


def test_a_weight_file_that_is_too_short(bundle: Bundle, tmp_path: Path) -> None:
    other = copied(bundle, tmp_path)
    data = (tmp_path / "model.weights").read_bytes()
    (tmp_path / "model.weights").unlink()
    (tmp_path / "model.weights").write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=r"model\.weights has \d+ bytes, its program needs"):
        opened(other)


def test_a_machine_without_a_gpu_says_so(bundle: Bundle) -> None:
    if torch.cuda.is_available():
        pytest.skip(reason="this machine has a GPU")
    with pytest.raises(RuntimeUnavailableError, match="--runtime onnxruntime") as caught:
        open_session(bundle, SessionOptions())
    assert "\n" not in str(caught.value)


def test_a_run_report_counts_the_memory_of_the_gpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`awq-edge run` from the bundle to its report, with the kernels' interface in NumPy."""
    from awq_edge.run.run import run
    from awq_edge.runtime.backends.cuda import opening

    monkeypatch.setattr(opening, "open_device", HostDevice)
    monkeypatch.setattr(opening, "load_kernels", HostKernels)
    report = run(bundle.path, "Once upon a time", max_new_tokens=4, ignore_eos=True)
    assert len(report.result.token_ids) == 4
    assert (report.environment.device, report.environment.threads) == ("host", None)
    assert report.bundle.accuracy_level is None
    assert report.bandwidth.device_bytes_per_second == 1e9
    memory = report.memory
    assert memory.measured.on_device is not None and memory.device == 1 << 30
    assert memory.peak_over_predicted is None
    # Predicted are the tensors; what is loaded is the file, with its padding.
    taken = bundle.manifest.files["model.weights"].size + memory.predicted.kv_cache
    resident = memory.predicted.weights + memory.predicted.kv_cache
    assert memory.loaded_over_predicted == pytest.approx(taken / resident)
