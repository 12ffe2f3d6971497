"""TensorRT on the device, driven against a module that writes down what it is asked."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awq_edge.artifacts.directories import MANIFEST
from awq_edge.errors import (
    ArtifactError,
    AwqEdgeError,
    ConfigError,
    ResourceError,
    RuntimeUnavailableError,
)
from awq_edge.tensorrt.builder import BuiltEngine, build_engine, build_engines
from awq_edge.tensorrt.engines import find_engine
from tests.tensorrt.engine_bundles import JETPACK_6, JETPACK_7

from .conftest import VERSIONS, Jetson

Record = Callable[[], dict[str, Any]]
ORIN_NANO_WORKSPACE = 512 << 20  # recipes/jetson-orin-nano-8gb.toml


def leftovers(folder: Path) -> list[str]:
    """What lies under the folder of engines, other than whole ones."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [name for name in names if not (folder / name / MANIFEST).is_file()]


def children_of(parent: int) -> list[int]:
    """Processes that another one has started."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid
            if int(file.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(file.parent.name))
    return found


@pytest.mark.parametrize("recipe", VERSIONS)
def test_engine_is_built_on_the_device(jetson: Jetson, record: Record, recipe: str) -> None:
    bundle = jetson(recipe)
    (built,) = build_engines(bundle)
    manifest, asked = built.engine.manifest, record()
    assert built.engine.path == bundle.path / "engines" / f"tensorrt-{VERSIONS[recipe]}-SM87"
    assert built.engine.file.read_bytes() == b"an engine"
    assert not built.reused
    assert asked["strongly_typed"]
    assert asked["pools"] == {"WORKSPACE": ORIN_NANO_WORKSPACE}
    assert asked["previews"] == []
    assert asked["plugins"] == ["W4A16Linear", "CachedAttention"]
    assert [shapes["input_ids"] for shapes in asked["profiles"]] == [
        [[1, 1], [1, 1], [1, 16]],
        [[1, 17], [1, 64], [1, 64]],
    ]
    assert asked["profiles"] == [
        {name: [list(s.min), list(s.opt), list(s.max)] for name, s in profile.shapes.items()}
        for profile in manifest.profiles
    ]
    assert manifest.plugin is not None
    assert len(manifest.plugin.library_sha256) == 64
    assert manifest.build.peak_rss is None or manifest.build.peak_rss > 1_000_000
    assert find_engine(bundle, "tensorrt", VERSIONS[recipe], "SM87") == built.engine


def test_tensorrts_own_attention_may_take_several_kernels(
    jetson: Jetson, record: Record, checkpoint: Path, tmp_path: Path
) -> None:
    from tests.tensorrt.engine_bundles import export_for

    jetson(JETPACK_7)
    native = export_for(checkpoint, tmp_path / "native", JETPACK_7, attention="native")
    build_engine(native)
    assert record()["decomposable"] == [True] * native.manifest.num_layers


def test_second_build_takes_what_is_there(jetson: Jetson) -> None:
    bundle = jetson(JETPACK_7)
    first = build_engine(bundle)
    assert list(build_engines(bundle)) == [BuiltEngine(first, reused=True)]
    (again,) = build_engines(bundle, rebuild=True)
    assert not again.reused


def test_timings_are_kept_per_device(jetson: Jetson, record: Record, cache: Path) -> None:
    bundle = jetson(JETPACK_7)
    build_engine(bundle)
    assert record()["timing_cache"] == ""
    (file,) = (cache / "timing").iterdir()
    assert file.name == "tensorrt-10.16.2.10-SM87-Orin-nvgpu.cache"
    list(build_engines(bundle, rebuild=True))
    assert record()["timing_cache"] == "timings"
    # TensorRT refuses timings of another device: the build starts with none.
    list(build_engines(jetson(JETPACK_7, fails="other_cache"), rebuild=True))
    assert record()["timing_cache"] == ""
    assert file.read_bytes() == b"timings"


REFUSALS: dict[str, tuple[type[AwqEdgeError], str]] = {
    "no_builder": (
        RuntimeUnavailableError,
        "tensorrt 10.16.2.10 cannot build on this machine: CUDA initialization failure",
    ),
    "parse": (ArtifactError, "node /model/Softcap: no importer registered for op; export the"),
    "profile": (ArtifactError, "refuses the decode profile"),
    "build": (RuntimeUnavailableError, "for SM87: Could not find any implementation"),
    "abort": (
        RuntimeUnavailableError,
        "ended with signal SIGABRT while it built",
    ),
    "killed": (ResourceError, "most likely memory ran out; close other programs, or add swap"),
}


@pytest.mark.parametrize("fails", REFUSALS)
def test_failures_are_one_line_and_leave_nothing(jetson: Jetson, fails: str) -> None:
    bundle = jetson(JETPACK_7, fails=fails)
    kind, said = REFUSALS[fails]
    with pytest.raises(kind) as error:
        list(build_engines(bundle))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert list((bundle.path / "engines").iterdir()) == []


def test_last_words_are_told(jetson: Jetson) -> None:
    with pytest.raises(
        RuntimeUnavailableError, match=r"its last words: .*without an active except"
    ):
        list(build_engines(jetson(JETPACK_7, fails="abort")))


def test_failed_rebuild_keeps_the_engine_that_was_there(jetson: Jetson) -> None:
    first = build_engine(jetson(JETPACK_7))
    with pytest.raises(RuntimeUnavailableError):
        list(build_engines(jetson(JETPACK_7, fails="build"), rebuild=True))
    assert first.file.read_bytes() == b"an engine"


def test_older_tensorrt_is_refused(jetson: Jetson) -> None:
    bundle = jetson(JETPACK_7, version="10.3.0.30")
    with pytest.raises(RuntimeUnavailableError, match=r"needs tensorrt 10\.15 or newer, here is"):
        list(build_engines(bundle))


def test_no_gpu_and_other_gpus_are_refused(jetson: Jetson, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = jetson(JETPACK_7)
    with pytest.raises(ConfigError, match="builds for the GPU of this machine, SM87; leave"):
        list(build_engines(bundle, targets=["SM89"]))
    monkeypatch.setattr("awq_edge.tensorrt.builder.targets.compute_capability", lambda: None)
    with pytest.raises(RuntimeUnavailableError, match="no NVIDIA GPU is found here; copy"):
        list(build_engines(bundle))


def test_memory_is_compared_before_the_build(
    jetson: Jetson, monkeypatch: pytest.MonkeyPatch
) -> None:
    from awq_edge.device.system_memory import SystemMemory

    bundle = jetson(JETPACK_7)
    little = SystemMemory(total=8 << 30, available=600 << 20)
    monkeypatch.setattr("awq_edge.tensorrt.builder.build.read_system_memory", lambda: little)
    with pytest.raises(ResourceError, match=r"6\d\d\.\d MB are available .* stop the desktop"):
        list(build_engines(bundle))
    assert not (bundle.path / "engines").exists()
    assert list(build_engines(bundle, memory_check=False))


def test_progress_is_told(jetson: Jetson) -> None:
    seen: list[tuple[int, int, float, str]] = []
    list(build_engines(jetson(JETPACK_7), observer=lambda *told: seen.append(told)))
    assert seen[0] == (0, 1, 0.0, "SM87: starting")
    assert seen[-1] == (0, 1, 1.0, "SM87: Building engine")
    assert [fraction for _, _, fraction, _ in seen] == sorted(f for _, _, f, _ in seen)


def test_killed_build_leaves_nothing_that_the_next_one_minds(
    jetson: Jetson, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL to the command while TensorRT works: its process ends too."""
    import subprocess
    import sys
    import time

    bundle = jetson(JETPACK_7)
    monkeypatch.setenv("FAKE_TENSORRT_WAITS", "60")
    script = (
        "import sys; from pathlib import Path\n"
        "import awq_edge.tensorrt.builder.targets as targets\n"
        "from awq_edge.artifacts.directories import Bundle\n"
        "from awq_edge.tensorrt.builder import build_engine\n"
        "targets.compute_capability = lambda: 87\n"
        "bundle = Bundle.open(Path(sys.argv[1]))\n"
        "build_engine(bundle, observer=lambda *told: print(told, flush=True))"
    )
    root = str(Path(__file__).resolve().parents[3])
    monkeypatch.setenv("PYTHONPATH", f"{root}:{Path(__file__).with_name('fake')}")
    command = subprocess.Popen(
        [sys.executable, "-c", script, str(bundle.path)], stdout=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    for line in command.stdout:
        if "Building engine" in line:
            break
    engines = bundle.path / "engines"
    assert leftovers(engines) != []  # at work
    children = children_of(command.pid)
    assert len(children) == 2  # TensorRT's process, and the leader of its group
    command.send_signal(signal.SIGKILL)
    command.wait()
    command.stdout.close()
    assert [path for path in engines.iterdir() if not path.name.startswith(".")] == []
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children):
        assert time.monotonic() < deadline, f"{children} go on"
        time.sleep(0.05)
    monkeypatch.delenv("FAKE_TENSORRT_WAITS")
    built = build_engine(bundle)
    assert leftovers(engines) == []
    assert built.file.read_bytes() == b"an engine"


@pytest.mark.parametrize("recipe", [JETPACK_6])
def test_bundle_whose_files_were_swapped_is_refused(jetson: Jetson, recipe: str) -> None:
    """A graph that is not the manifest's: the dtype of an input differs."""
    from tests.tensorrt.engine_bundles import edit_manifest

    bundle = jetson(recipe)
    inputs = [port.model_dump(mode="json") for port in bundle.manifest.inputs]
    inputs[0]["dtype"] = "int32"
    with pytest.raises(ArtifactError) as error:
        list(build_engines(edit_manifest(bundle, inputs=inputs)))
    assert "input input_ids is int64 [-1, -1], the bundle's manifest says int32 ['batch'" in str(
        error.value
    )
    inputs[0] |= {"dtype": "int64", "name": "tokens"}
    with pytest.raises(ArtifactError, match=r"only the graph has an input input_ids"):
        list(build_engines(edit_manifest(bundle, inputs=inputs)))
