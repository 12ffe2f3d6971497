"""The TensorRT session on fakes: memory as measured, engines that it refuses, calls that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from awq_edge.errors import ArtifactError, AwqEdgeError, ConfigError, DeviceError, ResourceError
from tests.device.fake_device import FakeLayer

from .fake_tensorrt import FakeEngine, TensorLocation
from .tensorrt_machine import CONTEXT, COPY, IDS, PREFILL, Machine

# What calls of the device cost a session: a leak, or an unclear error, shows at one of them.
RELEASES = {"free", "free_host", "destroy_stream", "destroy_graph", "close"}


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bandwidth is measured with, as a machine without a GPU can copy it."""
    monkeypatch.setattr("awq_edge.device.bandwidth._COPY_BYTES", COPY)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# ---- memory


def test_memory_is_measured_on_the_device(machine: Machine) -> None:
    other = machine.layer.allocate(10_000)  # another program's
    session = machine.open()
    measured = session.memory.measured
    assert measured is not None and measured.source == "cudaMemGetInfo"
    assert measured.before == 10_000 and measured.total == 1 << 30
    assert measured.loaded == measured.peak == machine.layer.in_use()
    grown = machine.layer.allocate(1 << 20)  # as a kernel that is loaded late
    session.prefill(IDS[:30])
    machine.layer.free(grown)
    session.prefill(IDS[30:60])
    measured = session.memory.measured
    assert measured is not None and measured.peak == measured.loaded + (1 << 20)
    taken = session.memory.kv_cache + (session.memory.workspace or 0)
    assert measured.loaded - measured.before == taken  # this fake's engine takes nothing
    assert session.memory.on_device == taken + len(b"an engine")
    session.close()
    machine.layer.closed = False
    machine.layer.free(other)


def test_too_little_memory_is_told_before_loading(machine: Machine) -> None:
    machine.layer = FakeLayer(memory=10_000)
    with pytest.raises(ResourceError, match=r"KV cache of 96 tokens need .* of the memory of F"):
        machine.open()
    assert "create_stream" not in machine.layer.calls and machine.layer.held == {}


def test_memory_that_runs_out_while_loading(machine: Machine) -> None:
    machine.layer = FakeLayer(memory=16_000)
    with pytest.raises(ResourceError, match="memory ran out"):
        machine.open()
    assert "create_stream" in machine.layer.calls and machine.layer.held == {}


def test_bandwidth(machine: Machine) -> None:
    session = machine.open()
    assert session.measure_bandwidth() == pytest.approx(2 * COPY / 2e-3)
    session.close()
    assert machine.layer.held == {}
    machine.layer = FakeLayer(memory=COPY + COPY // 2)
    session = machine.open()
    assert session.measure_bandwidth() is None  # no room for two blocks
    session.close()
    assert machine.layer.held == {}


# ---- engines that no session can drive


def _without(name: str) -> Any:
    def change(engine: FakeEngine) -> None:
        engine.inputs.pop(name, None)
        engine.outputs.pop(name, None)

    return change


def _with_input(name: str) -> Any:
    return lambda engine: engine.inputs.update({name: (1, -1)})


def _on_host(engine: FakeEngine) -> None:
    engine.locations["past_length"] = TensorLocation["HOST"]


def _growing(engine: FakeEngine) -> None:
    engine.outputs["present.0.key"] = (-1, 2, CONTEXT + 1, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("logits_positions"), "its inputs differ from a decoder's in logits_positions"),
        (_without("present.1.key"), "its outputs differ from a decoder's in present.1.key"),
        (_with_input("position_ids"), "its inputs differ from a decoder's in position_ids"),
        (_on_host, "wants past_length in the host's memory"),
        (_growing, r"present.0.key \[-1, 2, 97, 8\] cannot be one buffer of \[1, 2, 96, 8\]"),
    ],
)
def test_an_engine_that_is_not_a_decoder(machine: Machine, change: Any, message: str) -> None:
    machine.change = change
    with pytest.raises(ArtifactError, match=message):
        machine.open()
    assert machine.layer.held == {}


def test_an_engine_without_a_profile_of_one_token(machine: Machine) -> None:
    machine.profiles = (PREFILL,)
    with pytest.raises(ArtifactError, match="no profile that takes a single token"):
        machine.open()
    assert machine.layer.held == {}


def test_an_engine_of_a_shorter_cache(machine: Machine) -> None:
    machine.context = 64
    with pytest.raises(ArtifactError, match="built for 64 positions of the KV cache, 96 are asked"):
        machine.open()
    assert machine.layer.held == {}


# ---- every call fails in turn


def _use(machine: Machine) -> None:
    """All that a session does: direct runs, graphs, new graphs, both profiles, measuring."""
    session = machine.open()
    try:
        session.prefill(IDS[:30])
        session.decode(IDS[30])
        session.prefill(IDS[31:34])
        for each in IDS[34:37]:
            session.decode(each)
        session.logits(IDS[37:60], range(0, 23, 2))
        session.measure_bandwidth()
    finally:
        session.close()


@pytest.mark.parametrize("rtx", [True, False], ids=["tensorrt-rtx", "tensorrt"])
def test_whatever_call_fails_everything_is_released(tmp_path: Path, rtx: bool) -> None:
    sound = Machine(tmp_path, rtx=rtx)
    _use(sound)
    assert sound.layer.held == {}
    total = len(sound.layer.calls)
    failed = set()
    for number in range(1, total + 1):
        machine = Machine(tmp_path, layer=FakeLayer(fail_at=number), rtx=rtx)
        with pytest.raises(AwqEdgeError) as caught:
            _use(machine)
        assert machine.layer.held == {}, f"call {number}, {machine.layer.failed_call}"
        name = machine.layer.failed_call
        failed.add(name)
        assert name in str(caught.value) or "execution context" in str(caught.value)
    assert failed == set(sound.layer.calls)
    assert RELEASES <= failed and {"launch_graph", "end_capture", "execute_async_v3"} <= failed


def test_a_session_that_failed_is_closed(machine: Machine) -> None:
    session = machine.open()
    session.prefill(IDS[:10])
    machine.layer.fail_at = len(machine.layer.calls) + 2
    with pytest.raises(DeviceError, match="launch_graph failed"):
        session.decode(IDS[10])
    assert machine.layer.held == {}
    with pytest.raises(ConfigError, match="the session is closed"):
        session.decode(IDS[10])
