"""The kernel library is found where it should be, checked, and its refusals are told in words."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from awq_edge.errors import KernelError, RuntimeUnavailableError
from awq_edge.kernels import kernels
from awq_edge.kernels.interface import Sampler
from awq_edge.kernels.kernels import FILE_NAME, load_kernels, runs_on

from .fake_library import FakeLibrary

BUILD_COMMAND = "awq-edge build-plugins"


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No library of this machine is in sight, and it has no GPU; returns the package's folder."""
    monkeypatch.delenv(kernels.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels, "PACKAGE", tmp_path / "root" / "awq_edge")
    monkeypatch.setattr(kernels, "compute_capability", lambda device: None)
    return tmp_path / "root" / "awq_edge"


def _has_gpu(monkeypatch: pytest.MonkeyPatch, capability: int) -> None:
    monkeypatch.setattr(kernels, "compute_capability", lambda device: capability)
    monkeypatch.setattr(kernels, "driver_version", lambda: "13.0")


def test_missing_library_names_the_places_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match=BUILD_COMMAND) as refused:
        load_kernels()
    assert f"{FILE_NAME} is not in {tmp_path}/cache/plugins, " in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_named_file_that_is_missing_is_an_error_although_others_are_there(
    by_variable: bool, gcc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeLibrary().build(gcc, kernels.install_directory() / FILE_NAME)
    missing = tmp_path / "no.so"
    if by_variable:
        monkeypatch.setenv(kernels.ENVIRONMENT_VARIABLE, str(missing))
    with pytest.raises(RuntimeUnavailableError, match=r"no\.so: no such file.*" + BUILD_COMMAND):
        load_kernels(None if by_variable else missing)


def test_places_are_searched_in_order(
    gcc: str, tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package.parent / "plugins").mkdir(parents=True)
    (package.parent / "plugins" / "CMakeLists.txt").touch()
    places = [
        package.parent / "build" / "plugins" / FILE_NAME,
        package / "kernels" / "lib" / FILE_NAME,
        tmp_path / "cache" / "plugins" / FILE_NAME,
    ]
    for place in places:
        assert load_kernels(FakeLibrary().build(gcc, place)).path == place
        assert load_kernels().path == place
    named = FakeLibrary().build(gcc, tmp_path / "named.so")
    monkeypatch.setenv(kernels.ENVIRONMENT_VARIABLE, str(named))
    assert load_kernels().path == named
    assert load_kernels(places[0]).path == places[0]


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (FakeLibrary(abi_version=99), "abi version 99, this awq-edge needs 2"),
        (FakeLibrary(layout_version=7), "layout version 7, this awq-edge needs 1"),
        (
            FakeLibrary(omit="awq_edge_gather_rows"),
            "not a whole kernel library .*awq_edge_gather_rows",
        ),
        (FakeLibrary(omit="awq_edge_abi_version"), "not a whole kernel library"),
        (
            FakeLibrary(cuda_version=14020),
            "compiled with CUDA 14.2 and needs a driver for CUDA 14, the driver here is for CUDA",
        ),
        (FakeLibrary(architectures="80,86,87"), "compute capability 80,86,87, GPU 0 has 90"),
    ],
)
def test_a_library_that_does_not_fit_is_refused_with_the_reason(
    fake: FakeLibrary, words: str, gcc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _has_gpu(monkeypatch, 90)
    file = fake.build(gcc, tmp_path / FILE_NAME)
    with pytest.raises(RuntimeUnavailableError, match=f"{words}.*{BUILD_COMMAND}"):
        load_kernels(file)


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    file.write_text("no library")
    with pytest.raises(RuntimeUnavailableError, match=f"cannot be loaded.*{BUILD_COMMAND}"):
        load_kernels(file)


def test_a_stale_library_in_the_cache_does_not_hide_the_one_of_the_package(
    gcc: str, package: Path
) -> None:
    stale = FakeLibrary(layout_version=9).build(gcc, kernels.install_directory() / FILE_NAME)
    with pytest.raises(RuntimeUnavailableError, match="layout version 9"):
        load_kernels()
    good = FakeLibrary().build(gcc, package / "kernels" / "lib" / FILE_NAME)
    assert load_kernels().path == good
    assert stale.is_file()


def test_architectures_are_read_and_not_checked_without_a_gpu(gcc: str, tmp_path: Path) -> None:
    file = FakeLibrary(architectures="87").build(gcc, tmp_path / FILE_NAME)
    assert load_kernels(file).architectures == (87,)


@pytest.mark.parametrize(
    ("built", "capability", "expected"),
    [
        ((80,), 80, True),
        ((80,), 86, True),  # same major version, newer minor one
        ((86,), 80, False),
        ((80, 86, 89), 87, False),  # Orin runs code for Orin alone
        ((87,), 87, True),
        ((87,), 89, False),
        ((90,), 100, False),
        ((120,), 120, True),
        ((120,), 121, True),
        ((), 80, False),
    ],
)
def test_which_machine_code_runs_where(
    built: tuple[int, ...], capability: int, expected: bool
) -> None:
    assert runs_on(built, capability) is expected


def test_arguments_arrive_and_sizes_come_back(gcc: str, tmp_path: Path) -> None:
    library = load_kernels(FakeLibrary(workspace=5).build(gcc, tmp_path / FILE_NAME))
    lengths = (ctypes.c_int64 * 3)(10, 20, 2**40)
    library.call("awq_edge_advance", ctypes.addressof(lengths), 3, 2**33, None)
    assert list(lengths) == [10 + 2**33, 20 + 2**33, 2**40 + 2**33]
    assert library.size("awq_edge_sample_workspace", 2, 300) == 2305
    library.call("awq_edge_sample", Sampler(rows=1, vocab=100), 16, 64, None)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ("size is 7", "size is 7"),
        ("awq_edge_gather_rows: size is 7", "size is 7"),
        ("", "refused"),
    ],
)
def test_a_refusal_is_raised_with_the_library_s_words(
    last: str, words: str, gcc: str, tmp_path: Path
) -> None:
    fake = FakeLibrary(status=1, last_error=last)
    library = load_kernels(fake.build(gcc, tmp_path / FILE_NAME))
    with pytest.raises(KernelError, match=rf"^awq_edge_gather_rows: {words} \(status 1\)$"):
        library.call("awq_edge_gather_rows", 16, 16, 16, 1, 7, 0, None)
    with pytest.raises(KernelError, match=words):
        library.size("awq_edge_sample_workspace", 1, 1)


def test_a_wrong_number_of_arguments_never_reaches_the_library(gcc: str, tmp_path: Path) -> None:
    library = load_kernels(FakeLibrary().build(gcc, tmp_path / FILE_NAME))
    for arguments in [(16, 16, 16, 1, 7, 0), (16, 16, 16, 1, 7, 0, None, None)]:
        with pytest.raises(TypeError, match="takes 7 arguments"):
            library.call("awq_edge_gather_rows", *arguments)
    with pytest.raises(ctypes.ArgumentError):
        library.call("awq_edge_gather_rows", 16, 16, 16, 1.5, 7, 0, None)
    with pytest.raises(KeyError):
        library.call("awq_edge_nothing")
