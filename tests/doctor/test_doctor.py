"""`awq-edge doctor` on machines that are not here, and on this one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from awq_edge.device.jetson import JetsonLinux, read_jetpack_package, read_release
from awq_edge.doctor.machine import GpuFacts, Machine, this_machine
from awq_edge.doctor.report import DoctorReport, DoctorRow
from awq_edge.doctor.run import CHECKS, examine

from .machines import GIB, MEMINFO, Fake, bare_cpu, jetson, rtx_laptop, statuses


def row(report: DoctorReport, check: str) -> DoctorRow:
    (found,) = [each for each in report.rows if each.check == check]
    return found


def test_a_bare_cpu_lacks_nothing_for_its_recipe(tmp_path: Path) -> None:
    report = examine(bare_cpu(tmp_path).machine())
    assert (report.recipe, report.ready) == ("cpu", True)
    found = statuses(report.rows)
    assert "missing" not in found.values() and "failed" not in found.values()
    assert {found[check] for check in ("GPU and driver", "TensorRT", "kernel library")} == {
        "optional"
    }
    assert "JetPack" not in found and "power mode" not in found and "swap" not in found
    assert row(report, "memory").found == "12.88 GB of 17.18 GB available"
    assert row(report, "extra [host]").found == "not installed: torch, onnx"
    fix = "/home/me/env/bin/python -m pip install 'awq-edge[host]'"
    assert row(report, "extra [host]").fix == fix
    assert "extra [dev]" not in found


def test_the_same_machine_for_a_laptop_lacks_everything(tmp_path: Path) -> None:
    report = examine(bare_cpu(tmp_path).machine(), "rtx-4070-laptop-8gb")
    assert not report.ready
    missing = {each.check: each.fix for each in report.rows if each.status == "missing"}
    assert missing == {
        "GPU and driver": "awq-edge export MODEL --recipe cpu  # no NVIDIA GPU is on the PCI bus",
        "TensorRT for RTX": "/home/me/env/bin/python -m pip install --upgrade 'awq-edge[rtx]'",
        "CUDA from Python": "/home/me/env/bin/python -m pip install 'awq-edge[rtx]'",
        "kernel library": "awq-edge build-plugins --arch 8.9",
    }


def test_a_laptop_that_is_ready(tmp_path: Path) -> None:
    report = examine(rtx_laptop(tmp_path).machine())
    assert (report.recipe, report.ready) == ("rtx-4070-laptop-8gb", True)
    assert row(report, "GPU and driver").found == (
        "NVIDIA GeForce RTX 4070 Laptop GPU, compute capability 8.9, 8.59 GB, driver 580.95.05"
    )
    assert row(report, "CUDA, driver").found == "up to 13.2"
    assert row(report, "power").found == "mains"
    assert row(report, "kernel library").found.endswith("for compute capability 8.6, 8.9")
    assert row(report, "C++ plugin").status == "optional"


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        ({"versions": {"tensorrt-rtx": "1.4.0"}}, "TensorRT for RTX", "wants 1.7"),
        ({"architectures": None}, "kernel library", "is not in"),
        ({"modules": {"tensorrt_rtx"}}, "CUDA from Python", "neither"),
        (
            {"gpu": GpuFacts("NVIDIA GeForce RTX 4070 Laptop GPU", 89, 8 * GIB, "12.4")},
            "CUDA, driver",
            "up to 12.4; recipe rtx-4070-laptop-8gb needs 13.2",
        ),
        ({"gpu": None}, "GPU and driver", "driver 580.95.05, which finds no GPU"),
    ],
)
def test_what_a_laptop_may_lack(
    tmp_path: Path, change: dict[str, object], check: str, words: str
) -> None:
    fake = dataclasses.replace(rtx_laptop(tmp_path), **change)  # type: ignore[arg-type]
    report = examine(fake.machine(), "rtx-4070-laptop-8gb")
    found = row(report, check)
    assert found.status == "missing" and words in found.found and found.fix
    assert not report.ready


def test_another_gpu_than_the_recipe_s(tmp_path: Path) -> None:
    found = row(examine(rtx_laptop(tmp_path).machine(), "rtx-3070-laptop-8gb"), "GPU and driver")
    assert found.status == "missing" and found.found.endswith("is for 8.6")


def test_a_laptop_on_battery(tmp_path: Path) -> None:
    fake = rtx_laptop(tmp_path)
    fake.files["sys/class/power_supply/AC/online"] = "0\n"
    report = examine(fake.machine())
    assert row(report, "power").status == "warning" and report.ready


def test_a_jetson_that_is_ready(tmp_path: Path) -> None:
    report = examine(jetson(tmp_path).machine())
    assert (report.recipe, report.ready) == ("jetson-orin-nano-8gb-jetpack6", True)
    board = "NVIDIA Jetson Orin Nano Developer Kit, Jetson Linux 36.4.3"
    assert report.recipe_reason == f"module p3767-0005: {board}"
    assert "JetPack 6.2+b77" in row(report, "JetPack").found
    assert row(report, "CMA").found == "256.0 MB of 268.4 MB free, the page cache may have the rest"
    assert statuses(report.rows)["power mode"] == "ok"  # 25W has the full memory clock
    assert row(report, "TensorRT").found == "10.3.0"


def test_a_jetson_of_the_newer_jetpack(tmp_path: Path) -> None:
    fake = jetson(tmp_path, l4t="R39 (release), REVISION: 2.1", jetpack="7.2.1+b1")
    report = examine(fake.machine())
    assert report.recipe == "jetson-orin-nano-8gb"
    tensorrt = row(report, "TensorRT")  # JetPack 6's is still installed
    assert (tensorrt.status, tensorrt.found) == (
        "missing",
        "10.3.0; recipe jetson-orin-nano-8gb wants 10.16",
    )
    assert tensorrt.fix.startswith("flash the board with JetPack")


def test_a_jetson_with_all_that_may_be_wrong(tmp_path: Path) -> None:
    fake = jetson(tmp_path)
    fake.files["proc/meminfo"] = (
        MEMINFO.format(total=7_600_000, available=3_000_000, swap=0)
        + "CmaTotal: 262144 kB\nCmaFree: 1000 kB\nNvMapMemUsed: 740388 kB\n"
    )
    fake.files["var/lib/dpkg/status"] = "Package: bash\nStatus: install ok installed\nVersion: 5\n"
    fake.commands["nvpmodel -q"] = "NV Power Mode: 15W\n0\n"
    fake.files["proc/swaps"] = ""
    fake.modules = set()
    fake.disk = 2 * GIB
    report = examine(fake.machine())
    found = statuses(report.rows)
    warned = ("memory", "swap", "power mode", "disk, this folder", "disk, cache")
    assert {found[check] for check in warned} == {"warning"}
    assert all(row(report, check).fix for check in warned)
    assert found["CMA"] == "ok"  # borrowed by the page cache
    assert "memory at 68 GB/s, 102 in the fastest mode" in row(report, "power mode").found
    assert row(report, "JetPack").fix == "sudo apt update && sudo apt install nvidia-jetpack"
    assert row(report, "NvMap").found.startswith("758.2 MB")
    assert not report.ready


def test_a_jetson_with_the_recipe_of_another_jetpack(tmp_path: Path) -> None:
    found = row(examine(jetson(tmp_path).machine(), "jetson-orin-nano-8gb"), "JetPack")
    assert found.status == "missing" and found.found.endswith("is for 7.2")
    assert found.fix == "awq-edge export MODEL --recipe jetson-orin-nano-8gb-jetpack6"


@pytest.mark.parametrize(
    ("compatible", "gigabytes", "l4t", "recipe"),
    [
        ("nvidia,p3737-0000+p3701-0005", 61.3, "R36", "jetson-agx-orin-64gb-jetpack6"),
        ("nvidia,p3737-0000+p3701-0004", 29.9, "R39", "jetson-agx-orin-32gb"),
        ("nvidia,p3740-0002+p3701-0008", 61.3, "R39", "jetson-agx-orin-64gb"),
        ("nvidia,p3737-0000+p3701-0000", 29.9, "R36", "jetson-agx-orin-32gb-jetpack6"),
        ("nvidia,p3768-0000+p3767-0000-super", 15.3, "R36", "jetson-orin-nx-16gb-jetpack6"),
        ("nvidia,p3768-0000+p3767-0001", 7.4, "R39", "jetson-orin-nx-8gb"),
        ("nvidia,p3509-0000+p3767-0003", 7.4, "R39", "jetson-orin-nano-8gb"),
        ("nvidia,p3768-0000+p3767-0004-super", 3.4, "R36", "jetson-orin-nano-4gb-jetpack6"),
        ("nvidia,p3971-0089+p3834-0008", 122.8, "R38", "jetson-agx-thor"),
        ("maker,a-box\0nvidia,p3767-0005", 7.4, "R36", "jetson-orin-nano-8gb-jetpack6"),
        ("maker,p3701-0005-like\0nvidia,p3767-0000", 15.3, "R36", "jetson-orin-nx-16gb-jetpack6"),
        ("nvidia,p3768-0000+p3767-0002", 3.4, "R36", "jetson-orin-nano-4gb-jetpack6"),  # by memory
    ],
)
def test_the_recipe_of_a_module(
    tmp_path: Path, compatible: str, gigabytes: float, l4t: str, recipe: str
) -> None:
    """By its part number; what the board is called in free text decides nothing."""
    fake = jetson(tmp_path, l4t=f"{l4t} (release), REVISION: 4.0")
    fake.files["proc/device-tree/compatible"] = f"{compatible}\0nvidia,tegra234\0"
    fake.files["proc/device-tree/model"] = "NVIDIA Jetson AGX Orin Nano NX Thor Kit\0"
    kilobytes = int(gigabytes * 2**20)
    fake.files["proc/meminfo"] = MEMINFO.format(total=kilobytes, available=kilobytes, swap=0)
    assert examine(fake.machine()).recipe == recipe


@pytest.mark.parametrize(
    ("release", "version"),
    [("35.4.1", "5.1"), ("36.2.0", "6.0"), ("36.3.0", "6.0"), ("36.4.0", "6.1"), ("36.4", "6.1"),
     ("36.4.3", "6.2"), ("36.5.0", "6.2"), ("38.2.1", "7.0"), ("38.4.0", "7.1"), ("39.2.1", "7.2"),
     ("32.7.4", None), ("40.1.0", None)],
)  # fmt: skip
def test_the_jetpack_of_a_jetson_linux(release: str, version: str | None) -> None:
    """jetson-stats' table and NVIDIA's archive have these; one that is not known is not guessed."""
    found = JetsonLinux(release).jetpack
    assert (None if found is None else found.version) == version


def test_gpus_without_a_recipe_of_their_own(tmp_path: Path) -> None:
    fake = rtx_laptop(tmp_path)
    fake.gpu = GpuFacts("NVIDIA H100 80GB HBM3", 90, 80 * GIB, "13.0")
    report = examine(fake.machine())
    assert report.recipe == "cuda" and "H100" in report.recipe_reason
    missing = [each.check for each in report.rows if each.status == "missing"]
    assert missing == ["extra [cuda]"]  # torch
    fake.gpu = GpuFacts("NVIDIA GeForce RTX 4090", 89, 24 * GIB, "13.2")
    assert examine(fake.machine()).recipe == "rtx-4090"


def test_a_recipe_that_is_not_there_is_said(tmp_path: Path) -> None:
    report = examine(rtx_laptop(tmp_path).machine(), "rtx-4070-laptop")
    assert report.recipe == "rtx-4070-laptop-8gb"
    assert 'unknown recipe "rtx-4070-laptop"' in report.recipe_reason


@pytest.mark.parametrize("broken", sorted(CHECKS))
def test_a_check_that_raises_becomes_a_row(tmp_path: Path, broken: str) -> None:
    def fail(machine: Machine, recipe: object) -> list[DoctorRow]:
        raise PermissionError(13, "not for you\nat all")

    machine = bare_cpu(tmp_path).machine()
    report = examine(machine, checks={**CHECKS, broken: fail})
    (failed,) = [each for each in report.rows if each.status == "failed"]
    assert failed.check == broken
    assert failed.found == "PermissionError: [Errno 13] not for you at all"
    whole = examine(machine)
    other = {each.check for each in report.rows} - {broken}
    assert len(other) >= len(whole.rows) - 3  # nothing but this check's own rows is gone
    assert not report.ready


def test_a_machine_whose_every_answer_raises(tmp_path: Path) -> None:
    def fail(*arguments: object) -> object:
        raise RuntimeError("broken driver")

    machine = dataclasses.replace(
        rtx_laptop(tmp_path).machine(),
        **{name: fail for name in ("run", "version", "has_module", "gpu", "compiler", "kernels",
                                   "free_disk", "requirements")},
    )  # fmt: skip
    report = examine(machine)
    assert report.recipe == "cpu" and not report.ready
    assert statuses(report.rows)["recipe"] == "failed"
    assert statuses(report.rows)["memory"] == "ok"


@pytest.mark.parametrize("make", [bare_cpu, rtx_laptop, jetson])
def test_every_line_that_lacks_something_has_a_fix(
    tmp_path: Path, make: Callable[[Path], Fake]
) -> None:
    for recipe in ("cpu", "cuda", "rtx-4090", "jetson-agx-orin-64gb"):
        for each in examine(make(tmp_path).machine(), recipe).rows:
            assert each.status not in ("missing", "warning", "failed") or each.fix, each
            assert "\n" not in each.found + each.fix


def test_files_that_say_nothing(tmp_path: Path) -> None:
    assert read_release(tmp_path) is None and read_jetpack_package(tmp_path) is None
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("something else")
    assert read_release(tmp_path) is None


def test_this_machine_without_the_host_packages() -> None:
    """In a process that cannot import torch and its like; the exit code is 0 and JSON is whole."""
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'tensorrt', 'tensorrt_rtx'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['awq-edge', 'doctor', '--json', '-', '--recipe', 'rtx-4090']\n"
        "from awq_edge.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = DoctorReport.model_validate(json.loads(done.stdout))
    assert report.recipe == "rtx-4090"
    assert "failed" not in statuses(report.rows).values()
    assert "missing for recipe rtx-4090" in done.stderr or report.ready


def test_the_answers_of_this_machine() -> None:
    machine = this_machine()
    assert machine.version("numpy") and machine.version("no-such-package") is None
    assert machine.has_module("numpy") and not machine.has_module("no_such.module")
    assert machine.run([sys.executable, "-c", "print(7)"]) == "7\n"
    assert machine.run([sys.executable, "-c", "raise SystemExit(3)"]) is None
    assert machine.run(["/no/such/program"]) is None
    assert machine.free_disk(machine.cache / "not" / "there") > 0
