"""The fake has no attribute that the real TensorRT lacks: what it lets pass exists."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from awq_edge.tensorrt.module import load_tensorrt

from . import fake_tensorrt as fake

# What belongs to the test and not to TensorRT.
OURS = {
    "FakeEngine": {"layer", "model", "profiles", "rtx", "logits", "capturable", "context", "made"}
    | {"inputs", "outputs", "locations", "runtime"},
    "FakeRtxContext": {"engine", "layer", "profile", "memory", "shapes", "addresses", "prepared"}
    | {"changes"},
    "FakeRuntimeConfig": {"strategy"},
    "FakeRuntimeCache": {"content", "works"},
}
REAL = {
    "FakeEngine": "ICudaEngine",
    "FakeRtxContext": "IExecutionContext",
    "FakeRuntimeConfig": "IRuntimeConfig",
    "FakeRuntimeCache": "IRuntimeCache",
}


@pytest.fixture(scope="module")
def tensorrt() -> Any:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    return load_tensorrt("tensorrt_rtx")


@pytest.mark.parametrize("name", list(REAL))
def test_methods_and_properties_exist(tensorrt: Any, name: str) -> None:
    real = getattr(tensorrt, REAL[name])
    made = getattr(fake, name)
    source = inspect.getsource(made.__init__)
    for base in made.__mro__[1:-1]:
        source += inspect.getsource(base.__init__)
    assigned = {part.split()[0].rstrip(":,") for part in source.split("self.")[1:]}
    assigned = {each for each in assigned if each.isidentifier()}
    public = {each for each in {*dir(made), *assigned} if not each.startswith("_")} - OURS[name]
    assert len(public) >= 2
    for each in public:
        assert hasattr(real, each), f"{REAL[name]} has no {each}"


def test_enumerations_have_these_members(tensorrt: Any) -> None:
    for name, found in [
        ("TensorIOMode", fake.TensorIOMode),
        ("TensorLocation", fake.TensorLocation),
        ("DataType", fake.DataType),
        ("ExecutionContextAllocationStrategy", fake.Strategy),
        ("DynamicShapesKernelSpecializationStrategy", fake.Specialization),
        ("CudaGraphStrategy", fake.GraphStrategy),
    ]:
        members = set(getattr(tensorrt, name).__members__)
        assert set(found.__members__) <= members
