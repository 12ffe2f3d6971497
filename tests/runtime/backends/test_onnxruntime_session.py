"""A session on a real bundle: logits against transformers, and the KV cache kept in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import ConfigError, ResourceError, RuntimeUnavailableError
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.backends.onnxruntime import OnnxRuntimeSession
from awq_edge.runtime.memory import kv_cache_bytes
from awq_edge.runtime.session import Session, SessionOptions

# Both sides are float32 (accuracy level 0) and differ in the order of summation: 1e-6 per
# operation on logits of order 1, some ten operations deep. A wrong position or mask is off by 1.
TOLERANCE = 1e-4
IDS = [0, *(int(i) for i in np.random.default_rng(0).integers(4, 300, 99))]


@pytest.fixture
def session(tiny_bundle: Path) -> Iterator[OnnxRuntimeSession]:
    opened = open_session(Bundle.open(tiny_bundle), SessionOptions(threads=1))
    assert isinstance(opened, OnnxRuntimeSession)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> np.ndarray:
    """transformers' logits after each of IDS: float32 [100, vocab]."""
    torch = pytest.importorskip("torch", reason="needs the [host] extra")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.inference_mode():
        logits: np.ndarray = model(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(logits).max() > 1  # TOLERANCE means something
    return logits


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() < TOLERANCE)


def test_prefill_in_chunks_then_decode(session: Session, expected: np.ndarray) -> None:
    assert session.prefill_chunk < 70
    assert close(session.prefill(IDS[:70]), expected[69])
    for place in range(70, 100):
        assert close(session.decode(IDS[place]), expected[place])
    assert session.past_length == 100
    assert list(session.cached_ids) == IDS


def test_logits_at_chosen_positions(session: Session, expected: np.ndarray) -> None:
    positions = [0, 1, 31, 32, 63, 90]
    assert close(session.logits(IDS, positions), expected[positions])
    session.reset()
    assert session.logits(IDS[:40], []).shape == (0, session.vocab_size)
    assert close(session.logits(IDS[40:], [59]), expected[[99]])


def test_after_truncate_and_reset(session: Session, expected: np.ndarray) -> None:
    session.prefill(IDS)
    session.truncate(50)
    other = [int(i) for i in np.random.default_rng(1).integers(4, 300, 30)]
    session.prefill(other)  # what was forgotten is overwritten
    session.truncate(50)
    assert close(session.prefill(IDS[50:75]), expected[74])
    session.reset()
    assert session.past_length == 0
    assert close(session.prefill(IDS[:5]), expected[4])


def test_the_last_position_of_the_context(tiny_bundle: Path, expected: np.ndarray) -> None:
    options = SessionOptions(context=100, threads=1)
    with open_session(Bundle.open(tiny_bundle), options) as session:  # type: ignore[attr-defined]
        session.prefill(IDS[:99])
        assert close(session.decode(IDS[99]), expected[99])
        for append in (lambda: session.decode(7), lambda: session.prefill([7])):
            with pytest.raises(
                ResourceError, match=r"100 \+ 1 tokens do not fit the context of 100"
            ):
                append()
        assert list(session.cached_ids) == IDS


def test_a_prompt_that_does_not_fit_changes_nothing(session: Session, expected: np.ndarray) -> None:
    session.prefill(IDS[:10])
    with pytest.raises(ResourceError, match="do not fit the context"):
        session.prefill([5] * session.context)
    assert close(session.decode(IDS[10]), expected[10])


def test_cache_is_written_in_place(session: OnnxRuntimeSession) -> None:
    """The arrays that are bound hold the new keys and values, and nothing beyond them."""
    places = {name: array.ctypes.data for name, array in session._cache.items()}
    session.prefill(IDS[:40])
    session.decode(IDS[40])
    for name, array in session._cache.items():
        assert array.ctypes.data == places[name]
        filled = np.abs(array[0]).max(axis=(0, 2)) > 0  # [context]
        assert filled[:41].all() and not filled[41:].any()


def test_nothing_is_logged(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime warns on standard error where it has to copy."""
    with open_session(Bundle.open(tiny_bundle), SessionOptions()) as session:  # type: ignore[attr-defined]
        session.prefill(IDS[:40])
        session.decode(5)
    assert capfd.readouterr() == ("", "")


def test_memory_is_what_was_predicted(session: OnnxRuntimeSession, tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert session.memory.kv_cache == kv_cache_bytes(manifest, session.context)


def test_a_smaller_context_takes_less_memory(tiny_bundle: Path) -> None:
    """As far as the graph lets the cache's size vary."""
    bundle = Bundle.open(tiny_bundle)
    positions = next(p.shape[2] for p in bundle.manifest.inputs if p.name == "past.0.key")
    options = SessionOptions(context=64, threads=1)
    with open_session(bundle, options) as session:  # type: ignore[attr-defined]
        expected = positions if isinstance(positions, int) else 64
        assert session.memory.kv_cache == kv_cache_bytes(bundle.manifest, expected)
        assert session.context == 64


def test_a_closed_session_refuses(session: Session) -> None:
    session.prefill(IDS[:3])
    session.close()
    session.close()
    with pytest.raises(ConfigError, match="closed"):
        session.decode(4)


@pytest.mark.parametrize("ids", [[-1], [4, 100_000]])
def test_ids_that_the_model_does_not_have(session: Session, ids: list[int]) -> None:
    with pytest.raises(ConfigError, match="do not belong together"):
        session.prefill(ids)


@pytest.mark.parametrize("positions", [[3, 2], [1, 1], [-1], [5]])
def test_positions_that_make_no_sense(session: Session, positions: list[int]) -> None:
    with pytest.raises(ConfigError, match="positions must be increasing"):
        session.logits(IDS[:5], positions)


def test_truncate_beyond_what_is_there(session: Session) -> None:
    session.prefill(IDS[:3])
    with pytest.raises(ConfigError, match="holds 3 positions and cannot be cut to 4"):
        session.truncate(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SessionOptions(context=0), "--context 0"),
        (SessionOptions(context=257), "--context 257 is beyond the 256 tokens"),
        (SessionOptions(threads=0), "--threads 0"),
    ],
)
def test_impossible_options(tiny_bundle: Path, options: SessionOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_session(Bundle.open(tiny_bundle), options)


def test_a_runtime_without_backend_names_both_ways_out(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    manifest = bundle.manifest.model_copy(update={"runtime": "another"})
    with pytest.raises(RuntimeUnavailableError, match=r"target device.*--runtime onnxruntime"):
        open_session(Bundle(bundle.path, manifest), SessionOptions())


def test_the_environment_is_left_as_it_was(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable chooses onnxruntime's attention kernel while the session is made."""
    name = "ORT_GQA_DISABLE_FLASH_ATTENTION"
    for value in (None, "0"):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
        open_session(Bundle.open(tiny_bundle), SessionOptions(threads=1)).close()
        assert os.environ.get(name) == value


def test_many_positions_of_one_run(tiny_bundle: Path) -> None:
    """The array of positions is bound by its address: one of a chunk's size is given back to the
    system when it is freed, and has to outlive the run."""
    ids = [5 + i % 200 for i in range(256)]
    with open_session(Bundle.open(tiny_bundle), SessionOptions(context=256)) as session:
        whole = session.logits(ids, range(len(ids)))
        session.reset()
        single = np.concatenate([session.logits([each], [0]) for each in ids])
    assert np.abs(whole - single).max() < 1e-3 * np.abs(single).max()
