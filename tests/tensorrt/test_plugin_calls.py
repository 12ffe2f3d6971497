"""Both plugins, driven as TensorRT drives them, over a kernel library that writes down its calls.

Every expectation is met by the Python and by the C++ plugin; refusals have the same words.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from awq_edge.kernels.interface import COUNTER_BYTES
from awq_edge.kernels.kernels import load_kernels
from awq_edge.tensorrt.contract import CACHED_ATTENTION, OPS, W4A16_LINEAR
from awq_edge.tensorrt.op_contract import Number, describe

from .conftest import CppPlugin
from .drivers import RUNTIME, CppDriver, Driver, Plugin, PythonDriver, Refused
from .stub_tensorrt import DataType
from .test_contract import ATTENTION, LINEAR

HALF, BF16, FLOAT = DataType.HALF, DataType.BF16, DataType.FLOAT
INT8, INT32, INT64 = DataType.INT8, DataType.INT32, DataType.INT64
AUTO, DECODE, GEMM, CUBLASLT = 0, 1, 2, 3
LINEAR_CONSTANTS = [[3, 2, 256], [3, 4, 8, 2]]
WIDE: dict[str, Number] = {**LINEAR, "out_features": 80}
WIDE_CONSTANTS = [[5, 2, 256], [5, 4, 8, 2]]


@dataclass(frozen=True)
class Setup:
    driver: Driver
    recorded: Callable[[], list[str]]
    has_cublaslt: Callable[[int], None]


@pytest.fixture(params=["python", "cpp"])
def setup(
    request: pytest.FixtureRequest,
    recording_kernels: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Setup:
    monkeypatch.setattr("awq_edge.kernels.kernels.compute_capability", lambda device: None)
    recording = ctypes.CDLL(str(recording_kernels))
    recording.recording_take.restype = ctypes.c_char_p
    recording.recording_take()
    recording.recording_set_cublaslt(0)
    if request.param == "python":
        driver: Driver = PythonDriver(load_kernels(recording_kernels))
    else:
        built: CppPlugin = request.getfixturevalue("cpp_plugin")
        driver = CppDriver(built.host, built.library, lambda: capfd.readouterr().err)
    return Setup(
        driver,
        lambda: recording.recording_take().decode().splitlines(),
        recording.recording_set_cublaslt,
    )


def test_creators_declare_the_attributes(setup: Setup) -> None:
    for op in OPS.values():
        names = ", ".join(attribute.name for attribute in op.attributes)
        assert setup.driver.declared_fields(op.name) == names


@pytest.mark.parametrize("op", [W4A16_LINEAR, CACHED_ATTENTION], ids=lambda op: op.name)
def test_serialized_fields_make_the_same_plugin_again(setup: Setup, op: object) -> None:
    given = {W4A16_LINEAR.name: LINEAR, CACHED_ATTENTION.name: ATTENTION}
    name = op.name  # type: ignore[attr-defined]
    others = {"epilogue": 1} if name == W4A16_LINEAR.name else {"soft_cap": 30.5, "window": 7}
    values = OPS[name].read({**given[name], **others})
    plugin = setup.driver.create(name, {**given[name], **others})
    plugin.attach()
    assert plugin.serialized_fields() == describe(values)
    assert plugin.timing_cache_id() == describe(values)
    again = setup.driver.create(name, values, RUNTIME)
    assert again.serialized_fields() == describe(values)


@pytest.mark.parametrize(
    ("op", "fields", "message"),
    [
        ("W4A16Linear", {**LINEAR, "bits": 5}, "W4A16Linear: bits is 5, must be 3, 4 or 8"),
        (
            "W4A16Linear",
            {**LINEAR, "layout_version": 2},
            "W4A16Linear: layout_version is 2, must be 1",
        ),
        ("W4A16Linear", {}, "W4A16Linear: the attribute bits is missing"),
        (
            "W4A16Linear",
            {**LINEAR, "bits": 4.0},
            "W4A16Linear: bits is 1 x FLOAT32, must be one INT32 or INT64",
        ),
        (
            "CachedAttention",
            {**ATTENTION, "scale": 1},
            "CachedAttention: scale is 1 x INT32, must be one FLOAT32 or FLOAT64",
        ),
        (
            "CachedAttention",
            {**ATTENTION, "rotary_size": 66},
            "CachedAttention: rotary_size is 66, must be even and at most head_size 64",
        ),
        (
            "CachedAttention",
            {**ATTENTION, "soft_cap": -0.5},
            "CachedAttention: soft_cap is -0.5, must be at least 0",
        ),
    ],
)
def test_fields_are_refused_in_the_same_words(
    setup: Setup, op: str, fields: dict[str, Number], message: str
) -> None:
    with pytest.raises(Refused) as refused:
        setup.driver.create(op, fields)
    assert f"node: {message}" in str(refused.value)


def test_inputs_are_refused_in_the_same_words(setup: Setup) -> None:
    plugin = setup.driver.create("W4A16Linear", LINEAR)
    assert plugin.output_types([BF16, INT32, HALF]) == [BF16]
    for types, message in (
        ([FLOAT, INT32, HALF], "W4A16Linear: x is float32, must be float16 or bfloat16"),
        ([HALF, DataType.UINT8, HALF], "W4A16Linear: qweight is uint8, must be int32"),
        ([HALF, INT32], "W4A16Linear: 2 inputs, must be 3 (x, qweight, scales) for bits=4"),
    ):
        with pytest.raises(Refused) as refused:
            plugin.output_types(types)
        assert message in str(refused.value)
    wrong = [[1, 8, 192], [3, 2, 192], [3, 4, 8, 2]]
    for ask in (
        lambda: plugin.configure([HALF, INT32, HALF], wrong, wrong),
        lambda: plugin.shape_change([HALF, INT32, HALF], wrong),
    ):
        with pytest.raises(Refused) as refused:
            ask()
        assert (
            "W4A16Linear: qweight is [3, 2, 192], must be [3, 2, 256] = [tiles, blocks, words] "
            f"for {describe(W4A16_LINEAR.read(LINEAR))}"
        ) in str(refused.value)
    many = [[17, 4096, 192], *LINEAR_CONSTANTS]
    with pytest.raises(Refused, match=r"x is \[17, 4096, 192\], 69632 rows, must be at most 65535"):
        plugin.configure([HALF, INT32, HALF], many, many)


def test_formats_are_linear_and_of_the_activations_type(setup: Setup) -> None:
    plugin = setup.driver.create("W4A16Linear", {**LINEAR, "has_zeros": 1, "has_bias": 1})
    good = [BF16, INT32, HALF, INT32, BF16, BF16]
    for position, wrong in enumerate([FLOAT, INT8, BF16, FLOAT, HALF, HALF]):
        assert plugin.supports(position, 5, good, 0), position
        assert not plugin.supports(position, 5, good, 1), position
        changed = [wrong if at == position else type for at, type in enumerate(good)]
        assert not plugin.supports(position, 5, changed, 0), position


def _profile(rows: int) -> list[list[int]]:
    return [[1, rows, 192], *WIDE_CONSTANTS]


def test_tactics_follow_the_profile(setup: Setup) -> None:
    plugin = setup.driver.create("W4A16Linear", WIDE)
    types = [HALF, INT32, HALF]

    def tactics(least: int, most: int) -> list[int]:
        plugin.configure(types, _profile(least), _profile(most))
        return plugin.tactics()

    assert tactics(1, 16) == [DECODE]
    assert tactics(1, 17) == tactics(16, 512) == []
    assert tactics(17, 512) == [GEMM]
    setup.has_cublaslt(1)
    assert tactics(17, 512) == [GEMM, CUBLASLT]
    assert tactics(1, 1) == [DECODE]


def test_workspace_is_what_the_chosen_tactics_need_at_the_largest_shape(setup: Setup) -> None:
    plugin = setup.driver.create("W4A16Linear", WIDE)
    types = [BF16, INT32, HALF]

    def size(tactic: int, rows: int) -> int:
        return COUNTER_BYTES + 1 + 1_000_000 * tactic + 100 * rows

    plugin.configure(types, _profile(1), _profile(16))
    assert plugin.workspace(types, _profile(16)) == size(DECODE, 16)
    plugin.configure(types, _profile(1), _profile(512))
    assert plugin.workspace(types, _profile(512)) == size(AUTO, 512)
    setup.has_cublaslt(1)
    plugin.configure(types, _profile(32), _profile(512))
    assert plugin.workspace(types, _profile(512)) == size(CUBLASLT, 512)
    with pytest.raises(Refused, match="69632 rows, must be at most 65535"):
        plugin.workspace(types, [[17, 4096, 192], *WIDE_CONSTANTS])


def _run(
    plugin: Plugin, types: list[DataType], shapes: list[list[int]], outputs: list[int]
) -> None:
    """Attach, announce the shapes and enqueue; inputs are at 1000, 1001, ..."""
    plugin.attach()
    plugin.shape_change(types, shapes)
    plugin.enqueue([1000 + index for index in range(len(types))], outputs, 77, 88)


def test_a_linear_passes_everything_on(setup: Setup) -> None:
    plugin = setup.driver.create("W4A16Linear", {**WIDE, "has_zeros": 1, "has_bias": 1})
    plugin.set_tactic(GEMM)
    types = [BF16, INT32, HALF, INT32, BF16]
    _run(plugin, types, [[2, 3, 192], *WIDE_CONSTANTS, [5, 4, 2], [80]], [2000])
    bytes_ = COUNTER_BYTES + 1 + 2_000_000 + 600
    assert setup.recorded() == [
        "clear workspace=77 stream=88",
        "linear bits=4 group_size=64 in=192 out=80 dtype=1 epilogue=0 qweight=1001 scales=1002 "
        f"zeros=1003 bias=1004 x=1000 y=2000 m=6 tactic=2 workspace=77 bytes={bytes_} stream=88",
    ]


def test_a_tactic_may_be_set_after_the_shapes(setup: Setup) -> None:
    plugin = setup.driver.create("W4A16Linear", WIDE)
    plugin.attach()
    plugin.shape_change([HALF, INT32, HALF], [[6, 192], *WIDE_CONSTANTS])
    plugin.set_tactic(DECODE)
    plugin.enqueue([1000, 1001, 1002], [2000], 77, 88)
    bytes_ = COUNTER_BYTES + 1_000_000 + 600
    assert setup.recorded()[1].endswith(f" m=6 tactic=1 workspace=77 bytes={bytes_} stream=88")


def test_a_linear_that_is_not_split_clears_nothing(setup: Setup) -> None:
    plugin = setup.driver.create("W4A16Linear", {**LINEAR, "epilogue": 1, "has_bias": 1})
    _run(plugin, [HALF, INT32, HALF, HALF], [[192], *LINEAR_CONSTANTS, [40]], [2000])
    assert setup.recorded() == [
        "linear bits=4 group_size=64 in=192 out=40 dtype=0 epilogue=1 qweight=1001 scales=1002 "
        "zeros=0 bias=1003 x=1000 y=2000 m=1 tactic=0 workspace=77 "
        f"bytes={COUNTER_BYTES} stream=88",
    ]


def test_no_rows_are_no_call(setup: Setup) -> None:
    plugin = setup.driver.create("W4A16Linear", WIDE)
    _run(plugin, [HALF, INT32, HALF], [[0, 5, 192], *WIDE_CONSTANTS], [2000])
    assert setup.recorded() == []


def test_what_the_kernels_refuse_is_told(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECORDING_REFUSES", "1")
    plugin = setup.driver.create("W4A16Linear", LINEAR)
    with pytest.raises(Refused, match=r"awq_edge_w4a16_linear: refused \(status 2\)"):
        _run(plugin, [HALF, INT32, HALF], [[1, 192], *LINEAR_CONSTANTS], [2000])


CACHE = [2, 2, 128, 64]
CACHE_BYTES = 2 * 2 * 128 * 64


def test_attention_in_place(setup: Setup) -> None:
    plugin = setup.driver.create("CachedAttention", {**ATTENTION, "window": 9, "soft_cap": 30.0})
    types = [BF16, BF16, BF16, INT64, FLOAT, FLOAT, BF16, BF16]
    shapes = [[2, 3, 256], [2, 3, 128], [2, 3, 128], [2], [512, 16], [512, 16], CACHE, CACHE]
    assert plugin.output_types(types) == [BF16, BF16, BF16]
    bytes_ = COUNTER_BYTES + 2 * 3 * 128 * 256
    plugin.configure(types, shapes, shapes)
    assert plugin.tactics() == []
    assert plugin.workspace(types, shapes) == bytes_
    _run(plugin, types, shapes, [2000, 1006, 1007])
    assert setup.recorded() == [
        "clear workspace=77 stream=88",
        "attention dtype=1 kv_dtype=1 batch=2 tokens=3 heads=4/2 head_size=64 rotary_size=32 "
        "context=128 window=9 scale=0.125 soft_cap=30 norm_eps=1e-06 q=1000/256 k=1001/128 "
        "v=1002/128 past_length=1003 cosine=1004 sine=1005 q_norm=0 k_norm=0 key_cache=1006 "
        f"value_cache=1007 key_scales=0 value_scales=0 y=2000 workspace=77 bytes={bytes_} "
        "stream=88",
    ]


def test_attention_copies_a_cache_that_is_elsewhere(setup: Setup) -> None:
    attributes = {
        "merged_qkv": 1,
        "qk_norm": 1,
        "norm_eps": 1e-5,
        "int8_cache": 1,
        "rotary_size": 0,
    }
    plugin = setup.driver.create("CachedAttention", {**ATTENTION, **attributes})
    types = [HALF, INT64, INT8, INT8, HALF, HALF, FLOAT, FLOAT]
    scales = CACHE[:3]
    shapes = [[2, 1, 512], [2], CACHE, CACHE, [64], [64], scales, scales]
    assert plugin.output_types(types) == [HALF, INT8, INT8, FLOAT, FLOAT]
    bytes_ = COUNTER_BYTES + 2 * 1 * 128 * 256
    _run(plugin, types, shapes, [2000, 2001, 1003, 2003, 2004])
    assert setup.recorded() == [
        f"copy from=1002 to=2001 bytes={CACHE_BYTES} stream=88",
        f"copy from=1006 to=2003 bytes={4 * CACHE_BYTES // 64} stream=88",
        f"copy from=1007 to=2004 bytes={4 * CACHE_BYTES // 64} stream=88",
        "clear workspace=77 stream=88",
        "attention dtype=0 kv_dtype=2 batch=2 tokens=1 heads=4/2 head_size=64 rotary_size=0 "
        "context=128 window=0 scale=0.125 soft_cap=0 norm_eps=1e-05 q=1000/512 k=1512/512 "
        "v=1768/512 past_length=1001 cosine=0 sine=0 q_norm=1004 k_norm=1005 key_cache=2001 "
        f"value_cache=1003 key_scales=2003 value_scales=2004 y=2000 workspace=77 bytes={bytes_} "
        "stream=88",
    ]
    setup.recorded()
    plugin.shape_change(types, [[2, 0, 512], *shapes[1:]])
    plugin.enqueue(range(1000, 1008), [2000, 1002, 1003, 1006, 1007], 77, 88)
    assert setup.recorded() == []


def test_attention_copies_two_bytes_of_float16(setup: Setup) -> None:
    plugin = setup.driver.create("CachedAttention", {**ATTENTION, "rotary_size": 0})
    types = [HALF, HALF, HALF, INT64, HALF, HALF]
    shapes = [[2, 1, 256], [2, 1, 128], [2, 1, 128], [2], CACHE, CACHE]
    _run(plugin, types, shapes, [2000, 2001, 2002])
    assert setup.recorded()[:2] == [
        f"copy from=1004 to=2001 bytes={2 * CACHE_BYTES} stream=88",
        f"copy from=1005 to=2002 bytes={2 * CACHE_BYTES} stream=88",
    ]
