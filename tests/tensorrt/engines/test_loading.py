"""TensorRT's answer to an engine that is whole: the object, or its reason in one line."""

from __future__ import annotations

import mmap
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import RuntimeUnavailableError
from awq_edge.tensorrt.engines import Engine, TensorrtLog, deserialize
from tests.tensorrt.engine_bundles import make_engine


def fake_tensorrt(answer: Any, said: list[tuple[str, str]]) -> ModuleType:
    """A module whose runtime reads the engine, says something, and answers."""
    module = ModuleType("tensorrt")

    class ILogger:
        def __init__(self) -> None: ...

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            if answer is TypeError:
                logger.log(SimpleNamespace(name="ERROR"), "no CUDA")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def deserialize_cuda_engine(self, content: Any) -> Any:
            assert isinstance(content, mmap.mmap)
            self.content = bytes(content)
            for severity, message in said:
                self.logger.log(SimpleNamespace(name=severity), message)
            return answer

    module.__dict__.update(ILogger=ILogger, Runtime=Runtime, __version__="10.16.2.10")
    return module


@pytest.fixture
def engine(bundle: Bundle) -> Engine:
    return Engine.open(
        make_engine(bundle, bundle.path / "engines", "tensorrt", "10.16.2.10", "SM87")
    )


def test_engine_is_mapped_and_read(engine: Engine) -> None:
    trt = fake_tensorrt("engine", [("WARNING", "slow"), ("INFO", "much")])
    log = TensorrtLog(trt)
    runtime, loaded = deserialize(engine, trt, log)
    assert loaded == "engine"
    assert runtime.content == engine.file.read_bytes()
    assert (log.errors, log.warnings) == ([], ["slow"])


def test_refusal_has_tensorrts_first_reason(engine: Engine) -> None:
    said = [("ERROR", "Error Code 1:\n  Cuda Runtime (35)"), ("ERROR", "what follows from it")]
    trt = fake_tensorrt(None, said)
    with pytest.raises(RuntimeUnavailableError) as error:
        deserialize(engine, trt, TensorrtLog(trt))
    assert f"tensorrt 10.16.2.10 does not load {engine.file}" in str(error.value)
    assert ": Error Code 1: Cuda Runtime (35); a GPU" in str(error.value)
    assert "what follows" not in str(error.value)


def test_runtime_that_cannot_be_made_is_told(engine: Engine) -> None:
    trt = fake_tensorrt(TypeError, [])
    with pytest.raises(RuntimeUnavailableError, match=r"does not load .*: no CUDA; a GPU"):
        deserialize(engine, trt, TensorrtLog(trt))


def test_log_does_not_grow_without_end() -> None:
    log = TensorrtLog(fake_tensorrt(None, []))
    for number in range(1000):
        log.add("ERROR", str(number))
    assert log.reason() == "0"
    assert len(log.errors) < 100
