"""Engines of real models, built ahead of time by TensorRT for RTX on a machine without a GPU.

In processes of their own. An engine cannot be read back without a GPU: its inputs and outputs are
compared as TensorRT has parsed them, and their names looked for in the engine's bytes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awq_edge.artifacts.directories import MANIFEST, Bundle
from awq_edge.device.cuda_driver import compute_capability
from awq_edge.kernels.kernels import ENVIRONMENT_VARIABLE
from awq_edge.tensorrt.engines import find_engine
from tests.tensorrt.engine_bundles import JETPACK_6, RTX

ROOT = Path(__file__).resolve().parents[3]
_TIMEOUT_S = 300

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt-rtx, which has wheels for Linux on x86-64 and Windows",
)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A Python script with arguments, in a process with the kernels and a cache folder."""
    cache = tmp_path_factory.mktemp("cache")

    def start(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "AWQ_EDGE_CACHE": str(cache),
                ENVIRONMENT_VARIABLE: str(kernels),
            },
        )

    return start


def build(run: Run, bundle: Path, *arguments: str) -> list[dict[str, Any]]:
    """The engines that `awq-edge build` made, from its JSON."""
    done = run("from awq_edge.cli import main; main()", "build", bundle, "--json", "-", *arguments)
    assert done.returncode == 0, done.stderr
    engines: list[dict[str, Any]] = json.loads(done.stdout)["engines"]
    return engines


def export(model: str, out: Path, recipe: str, **settings: Any) -> Path:
    import awq_edge

    asked = awq_edge.load_recipe(recipe, method="rtn", context=128, **settings)
    return awq_edge.export(model, out, asked).path


def check_engine(bundle: Path, engine: dict[str, Any], sm: str) -> None:
    """The engine is where it belongs, matches the bundle, and has its inputs and outputs."""
    opened = Bundle.open(bundle)
    version = engine["manifest"]["runtime_version"]
    found = find_engine(opened, "tensorrt-rtx", version, sm)
    assert str(found.path) == engine["path"]
    assert found.path == bundle / "engines" / f"tensorrt-rtx-{version}-{sm}"
    assert found.manifest.inputs == opened.manifest.inputs
    assert found.manifest.outputs == opened.manifest.outputs
    assert (found.manifest.plugin is not None) == (opened.manifest.plugin is not None)
    plan = found.file.read_bytes()
    missing = [
        port.name
        for port in (*opened.manifest.inputs, *opened.manifest.outputs)
        if port.name.encode() not in plan
    ]
    assert missing == []
    weights = opened.manifest.part_bytes["blocks"]
    assert len(plan) > weights  # they are in it
    assert found.manifest.build.seconds > 0
    assert (found.manifest.build.peak_rss or 1e9) > weights


NATIVE = {"linear": "native", "attention": "native", "scheme": "symmetric", "lm_head_bits": 16}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, NATIVE], ids=["plugin", "native"])
def test_demo_model(run: Run, tmp_path: Path, settings: dict[str, Any]) -> None:
    bundle = export("demo", tmp_path / "bundle", RTX, **settings)
    (engine,) = build(run, bundle, "--target", "SM89")
    assert not engine["reused"]
    check_engine(bundle, engine, "SM89")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"attention": "native"}, NATIVE], ids=["plugin", "native"])
def test_stories260k(run: Run, stories: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Heads of 8 channels, which the attention plugin does not have."""
    bundle = export(str(stories), tmp_path / "bundle", RTX, group_size=32, **settings)
    (engine,) = build(run, bundle, "--target", "SM89")
    check_engine(bundle, engine, "SM89")


@pytest.mark.slow
def test_decomposed_graph_for_several_targets(run: Run, tmp_path: Path) -> None:
    """The graph for TensorRT 10.3, which cannot be built here, is read by the other TensorRT."""
    bundle = export("demo", tmp_path / "bundle", JETPACK_6)
    targets = ["SM86", "SM120"]
    options = ["--runtime", "tensorrt-rtx", *(o for sm in targets for o in ("--target", sm))]
    engines = build(run, bundle, *options)
    for sm, engine in zip(targets, engines, strict=True):
        check_engine(bundle, engine, sm)
    assert [engine["reused"] for engine in build(run, bundle, *options)] == [True] * 2
    # One that is damaged is built again, the other is not.
    Path(engines[1]["engine"]).write_bytes(b"")
    assert [engine["reused"] for engine in build(run, bundle, *options)] == [True, False]
    if compute_capability() is None:
        _loading_says_why(run, bundle, engines[0]["manifest"]["runtime_version"])


def _loading_says_why(run: Run, bundle: Path, version: str) -> None:
    """TensorRT's own reason, in one line, where no GPU is."""
    done = run(
        "import sys; from pathlib import Path\n"
        "from awq_edge.artifacts.directories import Bundle\n"
        "from awq_edge.tensorrt.engines import TensorrtLog, deserialize\n"
        "from awq_edge.tensorrt.engines import find_engine, register_plugins\n"
        "from awq_edge.errors import RuntimeUnavailableError\n"
        "from awq_edge.tensorrt.module import load_tensorrt\n"
        "bundle = Bundle.open(Path(sys.argv[1]))\n"
        "engine = find_engine(bundle, 'tensorrt-rtx', sys.argv[2], 'SM86')\n"
        "trt = load_tensorrt('tensorrt_rtx')\n"
        "register_plugins(engine.manifest.plugin, trt)\n"
        "try:\n"
        "    deserialize(engine, trt, TensorrtLog(trt))\n"
        "except RuntimeUnavailableError as error:\n"
        "    print(error)\n",
        bundle,
        version,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert f"tensorrt_rtx {version} does not load" in line
    assert "CUDA driver version is insufficient" in line or "no CUDA-capable device" in line


@pytest.mark.slow
def test_missing_kernels_are_one_line(run: Run, tmp_path: Path, kernels: Path) -> None:
    bundle = export("demo", tmp_path / "bundle", RTX, attention="native", linear="plugin")
    script = (
        "import os; os.environ['AWQ_EDGE_KERNELS'] = '/none.so'\n"
        "from awq_edge.cli import main; main()"
    )
    done = run(script, "build", bundle, "--target", "SM89")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "/none.so: no such file; build it on this machine with `awq-edge build-plugins`" in line
    assert not (bundle / "engines").exists()
    assert (bundle / MANIFEST).exists()
