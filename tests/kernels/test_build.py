"""`awq-edge build-plugins`: which tools it takes, what it says when one is missing or fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from awq_edge.cli import app
from awq_edge.errors import ConfigError, RuntimeUnavailableError
from awq_edge.kernels import build, toolchain
from awq_edge.kernels.architectures import TARGETS, parse_architecture, select_architectures
from awq_edge.kernels.build import build_plugins
from awq_edge.kernels.kernels import FILE_NAME, install_directory
from awq_edge.kernels.toolchain import find_toolchain

from .fake_tools import NO_HEADERS, FakeTools


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTools:
    """No tool of this machine is in sight, and it has no GPU."""
    fake = FakeTools(tmp_path)
    # The shell of the scripts needs its own programs.
    monkeypatch.setenv("PATH", str(fake.bin))
    for name in ("CUDA_HOME", "CXX", "LIBRARY_PATH", "TENSORRT_INCLUDE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolchain, "_LOCAL_CUDA", tmp_path / "local-cuda")
    monkeypatch.setattr(toolchain, "_packaged_toolkits", list)
    monkeypatch.setattr(toolchain.sys, "executable", str(tmp_path / "environment" / "python"))
    monkeypatch.setattr(build, "compute_capabilities", lambda: ())
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    return fake


@pytest.fixture
def complete(tools: FakeTools) -> FakeTools:
    """Every tool is in place."""
    return tools.all()


def test_every_missing_tool_is_named_with_how_to_get_it(tools: FakeTools) -> None:
    with pytest.raises(RuntimeUnavailableError) as refused:
        find_toolchain()
    message = str(refused.value)
    for part in (
        "nvcc, CUDA's compiler, is not in CUDA_HOME",
        "sudo apt install nvidia-jetpack",
        "pip install 'awq-edge[build]'",
        "cmake is not on PATH",
        "neither ninja nor make is on PATH",
        "no C++ compiler",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("nvcc", "nvcc, CUDA's compiler"),
        ("cmake", "cmake is not on PATH"),
        ("ninja", "neither ninja nor make"),
        ("c++", r"no C\+\+ compiler"),
    ],
)
def test_one_missing_tool_is_the_only_one_named(absent: str, words: str, tools: FakeTools) -> None:
    (tools.all().bin / absent).unlink()
    with pytest.raises(RuntimeUnavailableError, match=words) as refused:
        build_plugins()
    assert ";" not in str(refused.value)
    assert not install_directory().exists()


def test_nvcc_is_looked_for_in_order(
    tools: FakeTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.all()
    (tools.bin / "nvcc").unlink()
    packaged = tmp_path / "packages" / "cu13"
    monkeypatch.setattr(toolchain, "_packaged_toolkits", lambda: [packaged])
    places = (packaged / "bin", tmp_path / "local-cuda" / "bin", tools.bin)
    for number, place in enumerate(places):
        nvcc = tools.nvcc(version=f"13.{number}", at=place)
        found = find_toolchain()
        assert (found.nvcc, found.cuda_version) == (nvcc, f"13.{number}")
    named = tools.nvcc(version="12.6", at=tmp_path / "named" / "bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "named"))
    assert find_toolchain().nvcc == named
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nothing"))
    with pytest.raises(RuntimeUnavailableError, match=r"CUDA_HOME=.*nothing has no bin/nvcc"):
        find_toolchain()


def test_tools_of_the_python_environment_are_found_without_activating_it(
    tools: FakeTools, tmp_path: Path
) -> None:
    tools.all()
    for name in ("cmake", "ninja"):
        (tools.bin / name).rename(tools.program(name, at=tmp_path / "environment"))
    found = find_toolchain()
    assert found.cmake == tmp_path / "environment" / "cmake"
    assert found.generator == "Ninja"


def test_make_serves_where_ninja_is_not(tools: FakeTools) -> None:
    tools.all()
    (tools.bin / "ninja").rename(tools.bin / "make")
    assert find_toolchain().generator == "Unix Makefiles"


def test_libraries_of_a_packaged_toolkit_are_named_to_the_linker(
    tools: FakeTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.all()
    toolkit = tmp_path / "cu13"
    tools.nvcc(at=toolkit / "bin")
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert "LIBRARY_PATH" not in find_toolchain().environment()
    (toolkit / "lib").mkdir()
    (toolkit / "lib" / "libcudart_static.a").touch()
    assert find_toolchain().environment()["LIBRARY_PATH"] == str(toolkit / "lib")
    monkeypatch.setenv("LIBRARY_PATH", "/other")
    assert find_toolchain().environment()["LIBRARY_PATH"] == f"{toolkit / 'lib'}:/other"


@pytest.mark.parametrize("nvcc", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho nothing\n"])
def test_an_nvcc_that_does_not_work_is_named(nvcc: str, tools: FakeTools) -> None:
    tools.all().program("nvcc", nvcc)
    with pytest.raises(RuntimeUnavailableError, match=r"bin/nvcc --version .*CUDA_HOME"):
        find_toolchain()


def test_libraries_are_installed_where_the_loader_looks(complete: FakeTools) -> None:
    lines: list[str] = []
    result = build_plugins(progress=lines.append)
    assert result.kernels == install_directory() / FILE_NAME
    assert result.kernels.read_text() == "library\n"
    assert result.plugin is None and result.not_built is not None
    assert result.not_built == NO_HEADERS.partition(": ")[2]
    assert result.architectures == TARGETS
    assert lines[0].startswith("compiling for 8.0, 8.6, 8.7, 8.9, 9.0, 11.0, 12.0 with CUDA 13.0")
    assert lines[1].startswith("[1/2] Building")
    configure, compile_all = complete.calls()
    real = ";".join(f"{target}-real" for target in TARGETS)
    assert f"-DCMAKE_CUDA_ARCHITECTURES={real}" in configure
    assert f"-DCMAKE_CUDA_COMPILER={complete.bin / 'nvcc'}" in configure
    assert f"-DPython3_EXECUTABLE={sys.executable}" in configure
    assert compile_all.startswith("--build ")
    assert "CUDA compiler identification" in (install_directory() / "build.log").read_text()
    assert [path.name for path in install_directory().parent.iterdir()] == ["plugins"]


def test_build_makes_the_plugin_where_cmake_could(complete: FakeTools) -> None:
    complete.cmake(plugin='echo plugin > "$2/libawq_edge_plugin.so"', configure=":")
    result = build_plugins()
    assert result.plugin == install_directory() / "libawq_edge_plugin.so"
    assert result.not_built is None
    # The next build without the headers leaves no plugin of the one before.
    complete.cmake()
    assert build_plugins().plugin is None
    assert not (install_directory() / "libawq_edge_plugin.so").exists()


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            "echo 'one.cu(3): warning: so what'; echo \"one.cu(7): error: identifier x\"; "
            "echo 'one.cu(9): error: another'; exit 1",
            r"failed: one\.cu\(7\): error: identifier x$",
        ),
        ("echo 'two.cpp:5:1: error: expected'; exit 1", r"failed: two\.cpp:5:1: error: expected$"),
        (
            "echo 'fatal error: NvInfer.h: No such file'; exit 2",
            r"failed: fatal error: NvInfer\.h",
        ),
        ("echo 'something else'; exit 3", r"failed \(.*cmake --build .*\): something else$"),
    ],
)
def test_build_that_fails_shows_the_compiler_s_first_error(
    failure: str, words: str, complete: FakeTools
) -> None:
    before = build_plugins().kernels.stat()
    complete.cmake(failure=failure)
    with pytest.raises(RuntimeUnavailableError, match=words):
        build_plugins()
    # What was there still is.
    assert (install_directory() / FILE_NAME).stat().st_ino == before.st_ino


def test_build_that_cmake_refuses_shows_its_reason(complete: FakeTools) -> None:
    complete.cmake(
        configure="printf 'CMake Error at CMakeLists.txt:5 (cmake_minimum_required):\\n"
        "  CMake 3.22 or higher is required.\\n'; exit 1"
    )
    with pytest.raises(RuntimeUnavailableError, match=r"CMake 3\.22 or higher is required"):
        build_plugins()
    assert not install_directory().exists()


def test_build_never_replaces_a_folder_with_something_else(
    complete: FakeTools, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="mine exists"):
        build_plugins(out=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_build_refuses_a_tensorrt_folder_without_headers(
    complete: FakeTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"has no NvInfer\.h"):
        build_plugins()
    assert complete.calls() == []


def test_build_is_for_the_gpus_that_are_here(
    complete: FakeTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "compute_capabilities", lambda: (89, 86, 89))
    assert build_plugins().architectures == (86, 89)
    assert build_plugins(["8.7", "sm_90"]).architectures == (87, 90)


def test_build_command_prints_what_it_made(complete: FakeTools) -> None:
    result = CliRunner().invoke(app, ["build-plugins", "--arch", "8.7"], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"{install_directory() / FILE_NAME}: for compute capability 8.7, CUDA 13.0" in (
        result.output
    )
    assert NO_HEADERS in result.output


def test_architectures_are_read_in_any_spelling() -> None:
    assert [parse_architecture(text) for text in ("8.7", "87", "sm_87", "12.0", "sm_120")] == [
        *(87, 87, 87, 120, 120)
    ]
    for text in ("", "orin", "8", "sm_", "8.7.1", "1200"):
        with pytest.raises(ConfigError, match=r"such as 8\.7"):
            parse_architecture(text)


def test_architectures_that_the_toolkit_or_the_kernels_lack_are_refused() -> None:
    known = (50, 75, 80, 86, 87, 89, 90)
    assert select_architectures((), (), known, "12.6") == (80, 86, 87, 89, 90)
    with pytest.raises(ConfigError, match=r"CUDA 12\.6 does not compile .* 12\.0, only for 5\.0"):
        select_architectures((), (120,), known, "12.6")
    with pytest.raises(ConfigError, match=r"7\.5 is too old: the kernels need 8\.0"):
        select_architectures(("7.5",), (), known, "12.6")
