"""The arithmetic that kernels share with the CPU, compiled without CUDA: plugins/tests/host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.compilers import PLUGINS

HOST_TESTS = PLUGINS / "tests" / "host"
# As in plugins/tests/CMakeLists.txt.
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
INCLUDES = (f"-I{PLUGINS / 'kernels'}", f"-I{PLUGINS / 'include'}", f"-I{HOST_TESTS}")


def compile_and_run(gxx: str, source: Path, program: Path) -> subprocess.CompletedProcess[str]:
    """Compile one test program and run it. Fails with the compiler's words."""
    command = [gxx, *FLAGS, *INCLUDES, str(source), "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    return subprocess.run([program], capture_output=True, text=True, check=False)


def test_the_folder_has_tests() -> None:
    assert len(list(HOST_TESTS.glob("*.cpp"))) >= 2


@pytest.mark.parametrize("source", sorted(HOST_TESTS.glob("*.cpp")), ids=lambda path: path.stem)
def test_host_program(source: Path, gxx: str, tmp_path: Path) -> None:
    result = compile_and_run(gxx, source, tmp_path / source.stem)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " tests passed" in result.stdout


def test_a_failing_check_fails_its_program(gxx: str, tmp_path: Path) -> None:
    """Or every program above would pass whatever it computes."""
    source = tmp_path / "failing.cpp"
    source.write_text(
        '#include "check.h"\n'
        "TEST(good) { CHECK(true); CHECK_EQ(2, 2); }\n"
        "TEST(wrong) { CHECK_EQ(1 + 1, 3); }\n"
        "TEST(false_condition) { CHECK(1 > 2); }\n"
    )
    result = compile_and_run(gxx, source, tmp_path / "failing")
    assert result.returncode == 1
    assert "failing.cpp:3: 1 + 1 is 2, not 3" in result.stdout
    assert "failing.cpp:4: 1 > 2 is false" in result.stdout
    assert "FAILED wrong" in result.stdout and "FAILED good" not in result.stdout
    assert "1 of 3 tests passed" in result.stdout


def test_a_program_without_tests_fails(gxx: str, tmp_path: Path) -> None:
    source = tmp_path / "empty.cpp"
    source.write_text('#include "check.h"\n')
    assert compile_and_run(gxx, source, tmp_path / "empty").returncode == 1
