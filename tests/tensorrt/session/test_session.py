"""The TensorRT session on fakes of CUDA and TensorRT: chunks, profiles, graphs, buffers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from awq_edge.errors import ConfigError, DeviceError, ResourceError
from awq_edge.runtime.session import SessionOptions
from awq_edge.tensorrt.session.contexts import GRAPHS_VARIABLE
from awq_edge.tensorrt.session.session import TensorrtSession
from tests.device.fake_device import FakeLayer

from .fake_tensorrt import FakeRuntimeCache, Range
from .tensorrt_machine import (
    CHUNK,
    CONTEXT,
    DECODE,
    EXPECTED,
    IDS,
    PREFILL,
    TOLERANCE,
    VOCAB,
    Machine,
    close,
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(params=[True, False], ids=["tensorrt-rtx", "tensorrt"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TensorrtSession]:
    machine = Machine(tmp_path, rtx=request.param)
    opened = machine.open()
    yield opened
    opened.close()
    assert machine.layer.held == {}


def executed(layer: FakeLayer, since: int = 0) -> list[str]:
    """Of the calls since then, those that run the engine."""
    return [call for call in layer.calls[since:] if call in ("execute_async_v3", "launch_graph")]


# ---- the same as of every session


def test_prefill_in_chunks_then_decode(session: TensorrtSession) -> None:
    assert session.prefill_chunk == CHUNK
    assert close(session.prefill(IDS[:70]), EXPECTED[69])
    for place in range(70, CONTEXT):
        assert close(session.decode(IDS[place]), EXPECTED[place])
    assert session.past_length == CONTEXT
    assert list(session.cached_ids) == IDS


def test_prompts_of_every_length(session: TensorrtSession) -> None:
    for length in range(1, 60):
        session.reset()
        assert close(session.prefill(IDS[:length]), EXPECTED[length - 1]), length


def test_logits_at_chosen_positions(session: TensorrtSession) -> None:
    positions = [0, 1, 23, 24, 47, 63, 90]
    assert close(session.logits(IDS, positions), EXPECTED[positions])
    session.reset()
    assert session.logits(IDS[:40], []).shape == (0, VOCAB)
    assert close(session.logits(IDS[40:], [55]), EXPECTED[[95]])


def test_all_positions_in_executions_of_a_profile(
    session: TensorrtSession,
) -> None:
    assert close(session.logits(IDS, range(CONTEXT)), EXPECTED)


def test_after_truncate_and_reset(session: TensorrtSession) -> None:
    session.prefill(IDS)
    session.truncate(50)
    session.prefill(IDS[:30])  # what was forgotten is overwritten
    session.truncate(50)
    assert close(session.prefill(IDS[50:75]), EXPECTED[74])
    session.reset()
    assert session.past_length == 0
    assert close(session.prefill(IDS[:5]), EXPECTED[4])


def test_a_prompt_that_does_not_fit_changes_nothing(session: TensorrtSession) -> None:
    session.prefill(IDS[:10])
    with pytest.raises(ResourceError, match=r"10 \+ 96 tokens do not fit the context of 96"):
        session.prefill(IDS)
    assert close(session.decode(IDS[10]), EXPECTED[10])


def test_the_last_position_of_the_context(session: TensorrtSession) -> None:
    session.prefill(IDS[:95])
    assert close(session.decode(IDS[95]), EXPECTED[95])
    with pytest.raises(ResourceError, match="do not fit the context of 96"):
        session.decode(7)
    assert list(session.cached_ids) == IDS


@pytest.mark.parametrize("ids", [[-1], [4, 100_000]])
def test_ids_that_the_model_does_not_have(session: TensorrtSession, ids: list[int]) -> None:
    with pytest.raises(ConfigError, match="do not belong together"):
        session.prefill(ids)


def test_truncate_beyond_what_is_there(session: TensorrtSession) -> None:
    session.prefill(IDS[:3])
    with pytest.raises(ConfigError, match="holds 3 positions and cannot be cut to 4"):
        session.truncate(4)


def test_a_closed_session_refuses(machine: Machine) -> None:
    session = machine.open()
    session.prefill(IDS[:3])
    session.close()
    session.close()
    assert session.memory.on_device is None or session.memory.on_device == 0
    with pytest.raises(ConfigError, match="closed"):
        session.decode(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SessionOptions(context=0), "--context 0"),
        (SessionOptions(context=97), "--context 97 is beyond the 96 tokens"),
        (SessionOptions(threads=2), "--threads 2: runtime tensorrt-rtx computes on the GPU"),
    ],
)
def test_impossible_options(machine: Machine, options: SessionOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        machine.open(options)
    assert machine.layer.held == {}


# ---- what is TensorRT's own


def test_the_cache_is_one_buffer_for_both_sides(machine: Machine) -> None:
    session = machine.open()
    for context in session._contexts.values():
        addresses = context._context.addresses
        for name in machine.engine.inputs:
            if name.startswith("past."):
                assert addresses[name] == addresses[name.replace("past.", "present.")]
    first, second = (each._context.addresses for each in session._contexts.values())
    assert first == second  # and both profiles write to it
    before = len(machine.layer.calls)
    session.prefill(IDS[:60])
    session.decode(IDS[60])
    assert "allocate" not in machine.layer.calls[before:]
    assert "copy_on_device" not in machine.layer.calls[before:]
    session.close()


def test_nothing_beyond_what_is_filled_is_written(machine: Machine) -> None:
    session = machine.open()
    session.prefill(IDS[:40])
    session.decode(IDS[40])
    addresses = session._contexts[0]._context.addresses
    shape = (2, CONTEXT, 8)
    for name in ("past.0.key", "past.1.value"):
        size = int(np.prod(shape)) * 2
        held = machine.layer.view(addresses[name], size).view(np.float16).reshape(shape)
        filled = np.abs(held).max(axis=(0, 2)) > 0
        assert filled[:41].all() and not filled[41:].any()
    session.close()


def test_a_decode_step_is_one_launch_and_one_wait(machine: Machine) -> None:
    session = machine.open()
    session.prefill(IDS[:40])
    before = len(machine.layer.calls)
    session.decode(IDS[40])
    assert machine.layer.calls[before:] == ["activate", "launch_graph", "synchronize"]
    session.close()


def test_the_graph_is_captured_while_loading(machine: Machine) -> None:
    session = machine.open()
    calls = machine.layer.calls
    assert calls.count("begin_capture") == 1 and machine.layer.graphs == 1
    session.prefill(IDS[:60])  # 24, 24, 12 tokens: the prefill profile's
    for each in IDS[60:70]:
        session.decode(each)
    assert calls.count("begin_capture") == 1
    session.close()


def test_other_shapes_in_the_decode_profile_make_a_new_graph(machine: Machine) -> None:
    """A chunk of 3 tokens is the decode profile's: the graph of one token is stale after it."""
    session = machine.open()
    assert close(session.prefill(IDS[:3]), EXPECTED[2])
    assert machine.layer.graphs == 0
    before = len(machine.layer.calls)
    for place in range(3, 7):
        assert close(session.decode(IDS[place]), EXPECTED[place])
    # The first step runs directly, the second captures, and all from then on launch.
    assert executed(machine.layer, before) == [
        "execute_async_v3",
        "execute_async_v3",
        *["launch_graph"] * 3,
    ]
    assert machine.layer.graphs == 1
    session.close()


def test_logits_of_a_single_token_are_a_step_too(machine: Machine) -> None:
    session = machine.open()
    session.prefill(IDS[:10])
    before = len(machine.layer.calls)
    assert close(session.logits(IDS[10:11], [0]), EXPECTED[[10]])
    assert session.logits(IDS[11:12], []).shape == (0, VOCAB)
    assert executed(machine.layer, before) == ["launch_graph"] * 2
    assert close(session.decode(IDS[12]), EXPECTED[12])
    session.close()


def test_only_the_last_chunk_copies_logits(machine: Machine) -> None:
    session = machine.open()
    before = len(machine.layer.calls)
    session.prefill(IDS[:72])
    calls = machine.layer.calls[before:]
    assert calls.count("execute_async_v3") == 3 and calls.count("copy_to_host") == 1
    session.close()


def test_each_number_of_tokens_goes_to_its_profile(machine: Machine) -> None:
    session = machine.open()
    for count, tokens in [(24, (5, 32)), (5, (5, 32)), (4, (1, 4)), (2, (1, 4))]:
        profile = session._ports.profile_for(count)
        assert profile is not None and (profile.min_tokens, profile.max_tokens) == tokens
    session.close()


@pytest.mark.parametrize(
    "profiles",
    [
        (Range((1, 32), rows=8),),  # one for everything
        (PREFILL, DECODE),  # in the other order
        (Range((1, 1), rows=1), Range((8, 16), rows=1)),  # a gap, and one row at a time
        (Range((1, 1), rows=1),),  # token by token
    ],
)
def test_engines_of_other_profiles(machine: Machine, profiles: tuple[Range, ...]) -> None:
    machine.profiles = profiles
    session = machine.open()
    assert close(session.prefill(IDS[:61]), EXPECTED[60])
    assert close(session.decode(IDS[61]), EXPECTED[61])
    session.reset()
    assert close(session.logits(IDS[:50], range(3, 50, 4)), EXPECTED[3:50:4])
    session.close()
    assert machine.layer.held == {}


@pytest.mark.parametrize("logits", ["FLOAT", "HALF", "BF16"])
def test_logits_of_every_type_are_float32_on_the_host(machine: Machine, logits: str) -> None:
    machine.options = {"logits": logits}
    session = machine.open()
    found = session.prefill(IDS[:30])
    assert found.dtype == np.float32
    assert np.abs(found - EXPECTED[29]).max() < (0.15 if logits == "BF16" else TOLERANCE)
    session.close()


def test_a_smaller_context_takes_less_memory_where_the_engine_lets_it(machine: Machine) -> None:
    whole = machine.open()
    assert whole.memory.kv_cache == 2 * 2 * 2 * 8 * 2 * CONTEXT
    whole.close()
    for context, positions in [((64, 96), 64), ((1, 96), 32), (96, 96)]:
        machine.layer, machine.context = FakeLayer(), context
        session = machine.open(SessionOptions(context=32))
        assert session.context == 32
        assert session.memory.kv_cache == 2 * 2 * 2 * 8 * 2 * positions
        assert close(session.prefill(IDS[:32]), EXPECTED[31])
        session.close()


def test_contexts_share_one_block_of_activations(machine: Machine) -> None:
    session = machine.open()
    blocks = {each._context.memory for each in session._contexts.values()}
    assert len(blocks) == 1 and blocks.pop()[1] >= 2 * 4096
    session.close()


def test_rtx_compiles_the_decode_kernels_before_they_are_captured(machine: Machine) -> None:
    machine.open().close()
    assert machine.engine.made == ["EAGER DISABLED", "LAZY DISABLED"]


def test_rtx_captures_itself_what_cannot_be_captured(machine: Machine) -> None:
    machine.options = {"capturable": False}
    session = machine.open()
    assert machine.engine.made == ["EAGER DISABLED", "EAGER WHOLE_GRAPH_CAPTURE", "LAZY DISABLED"]
    session.prefill(IDS[:10])
    assert close(session.decode(IDS[10]), EXPECTED[10])
    assert "begin_capture" not in machine.layer.calls
    session.close()
    assert machine.layer.held == {}


def test_graphs_can_be_turned_off(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GRAPHS_VARIABLE, "0")
    session = machine.open()
    session.prefill(IDS[:10])
    assert close(session.decode(IDS[10]), EXPECTED[10])
    assert "begin_capture" not in machine.layer.calls
    session.close()


def test_a_capture_that_tensorrt_refuses_is_one_clear_error(machine: Machine) -> None:
    """TensorRT has no way to ask before."""
    machine.rtx, machine.options = False, {"capturable": False}
    with pytest.raises(DeviceError, match=r"own words; .*AWQ_EDGE_CUDA_GRAPHS=0 turns them off"):
        machine.open()
    assert machine.layer.held == {}


def test_compiled_kernels_are_kept(machine: Machine, tmp_path: Path) -> None:
    machine.kernel_cache = tmp_path / "kernels" / "file"
    machine.open().close()
    assert machine.kernel_cache.read_bytes() == b"compiled"
    machine.kernel_cache.write_bytes(b"of before")
    machine.layer = FakeLayer()
    machine.open().close()
    assert machine.kernel_cache.read_bytes() == b"of before"


def test_kernels_that_cannot_be_kept_are_no_error(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.kernel_cache = tmp_path / "model.engine" / "no folder"
    machine.open().close()
    monkeypatch.setattr(FakeRuntimeCache, "works", False)
    machine.layer, machine.kernel_cache = FakeLayer(), tmp_path / "kernels"
    machine.open().close()
    assert not machine.kernel_cache.exists() and machine.layer.held == {}


def test_nothing_of_tensorrt_outlives_a_closed_session(machine: Machine) -> None:
    session = machine.open()
    session.prefill(IDS[:30])
    engine = weakref.ref(machine.engine)
    context = weakref.ref(session._contexts[0]._context)
    runtime = machine.engine.runtime
    del machine.engine
    gc.collect()
    assert runtime() is not None  # an engine needs it as long as it lives
    session.close()
    gc.collect()
    assert engine() is None and context() is None and runtime() is None
