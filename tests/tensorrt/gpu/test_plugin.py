"""Both TensorRT plugins over the real kernels: right numbers, equal bits, captured into a graph.

No engine is executed here: the plugins are driven through their interfaces.
"""

from __future__ import annotations

from typing import Any

import pytest

from awq_edge.kernels.kernels import load_kernels
from tests.tensorrt.drivers import CppDriver, Driver, PythonDriver
from tests.tensorrt.plugin_build import build_host, build_plugin, tensorrt_headers

torch = pytest.importorskip("torch", reason="needs torch")

from .plugin_attention_checks import (  # noqa: E402
    ATTENTION_CASES,
    AttentionCase,
    check_attention,
)
from .plugin_checks import (  # noqa: E402
    LINEAR_CASES,
    LinearCase,
    check_capture,
    check_linear,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(scope="module")
def python() -> Driver:
    return PythonDriver(load_kernels())


@pytest.fixture(scope="module")
def cpp_files(gxx: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    headers, folder = tensorrt_headers(), tmp_path_factory.mktemp("plugin")
    library = build_plugin(gxx, load_kernels().path, headers, folder)
    return build_host(gxx, headers, folder), library


@pytest.fixture
def cpp(cpp_files: Any, capfd: pytest.CaptureFixture[str]) -> Driver:
    return CppDriver(*cpp_files, lambda: capfd.readouterr().err)


@pytest.fixture(params=["python", "cpp"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
def test_linears_agree_with_float64(driver: Driver, case: LinearCase) -> None:
    check_linear(driver, case)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_attention_agrees_with_float64(driver: Driver, case: AttentionCase) -> None:
    check_attention(driver, case)


def test_a_call_is_captured_into_a_graph(driver: Driver) -> None:
    check_capture(driver)


def test_both_plugins_give_the_same_bits(python: Driver, cpp: Driver) -> None:
    for linear in LINEAR_CASES:
        for ours, theirs in zip(
            check_linear(python, linear), check_linear(cpp, linear), strict=True
        ):
            assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1]), linear
    for attention in ATTENTION_CASES:
        for mine, other in zip(
            check_attention(python, attention), check_attention(cpp, attention), strict=True
        ):
            assert torch.equal(mine, other), attention
