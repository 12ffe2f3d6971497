"""The kernels compile for every target without spills, and the library refuses what it must.

Compiling takes minutes the first time on a machine and nothing while the sources stay as they are
(scripts/kernel_resources.py); AWQ_EDGE_TEST_ARCHITECTURES=86 compiles for one target.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from awq_edge.errors import KernelError, RuntimeUnavailableError
from awq_edge.kernels import interface, kernels
from awq_edge.kernels.architectures import TARGETS
from awq_edge.kernels.interface import Dtype
from awq_edge.kernels.kernels import FILE_NAME, KernelLibrary, load_kernels
from awq_edge.kernels.toolchain import Toolchain, find_toolchain

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "results" / "kernel_resources.json"
REGENERATE = "regenerate it: scripts/kernel_resources.py --json docs/results/kernel_resources.json"

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8awq_edge3oneIfEEvPi' for 'sm_90a'
ptxas info    : Function properties for _ZN8awq_edge3oneIfEEvPi
    56 bytes stack frame, 148 bytes spill stores, 152 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 56 bytes cumulative stack size, 128 bytes smem
ptxas info    : Compile time = 10.000 ms
ptxas info    : Compiling entry function '_ZN8awq_edge3twoEv' for 'sm_120'
ptxas info    : Function properties for _ZN8awq_edge3twoEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


def _script() -> ModuleType:
    path = ROOT / "scripts" / "kernel_resources.py"
    spec = importlib.util.spec_from_file_location("kernel_resources", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernel_resources"] = module
    spec.loader.exec_module(module)
    return module


resources: Any = _script()


@pytest.fixture(scope="module")
def tools() -> Toolchain:
    try:
        return find_toolchain()
    except RuntimeUnavailableError as error:
        pytest.skip(reason=str(error))


@pytest.fixture(scope="module")
def compiled(tools: Toolchain) -> Path:
    return Path(resources.compiled(tools))


@pytest.fixture(scope="module")
def library(compiled: Path) -> KernelLibrary:
    return load_kernels(compiled / FILE_NAME)


def test_what_ptxas_prints_is_read() -> None:
    assert resources.parse_ptxas(PTXAS) == [
        (
            "_ZN8awq_edge3oneIfEEvPi",
            "90",
            {"registers": 64, "shared_bytes": 128, "spill_bytes": 300},
        ),
        ("_ZN8awq_edge3twoEv", "120", {"registers": 8, "shared_bytes": 0, "spill_bytes": 0}),
    ]
    with pytest.raises(ValueError, match="not what ptxas -v prints"):
        resources.parse_ptxas("Compiling entry function 'x' for 'sm_90'\nsomething else\n")


def test_names_are_readable() -> None:
    symbols = [
        "_ZN8awq_edge44_GLOBAL__N__334e1c89_11_rms_norm_cu_8fd032a0"
        "15rms_norm_kernelI6__halfLi8EEEvPKT_PS3_S5_S6_if",
        "_ZN8awq_edge3twoEv",
    ]
    assert resources.demangle(symbols) == ["rms_norm_kernel<__half, 8>", "two"]


def test_what_another_checkout_compiled_is_taken_for_the_same_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[Path] = []

    def compile_libraries(tools: Any, sources: Path, build: Path, *_: Any, **options: Any) -> None:
        builds.append(build)
        objects = build / "CMakeFiles/awq_edge_kernels.dir/kernels"
        objects.mkdir(parents=True, exist_ok=True)
        for file in (build / FILE_NAME, objects / "a.cu.o", objects / "a.cu.o.log"):
            file.write_text("built")

    def compiled(checkout: str, source: str) -> Path:
        folder = tmp_path / checkout
        (folder / "plugins").mkdir(parents=True, exist_ok=True)
        (folder / "plugins" / "a.cu").write_text(source)
        monkeypatch.setattr(resources, "ROOT", folder)
        monkeypatch.setattr(resources, "SOURCES", folder / "plugins")
        program = Path(sys.executable)
        return Path(
            resources.compiled(
                SimpleNamespace(
                    nvcc=program, cxx=program, cuda_version="13.0", known_architectures=TARGETS
                )
            )
        )

    monkeypatch.delenv(resources.VARIABLE, raising=False)
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(resources, "compile_libraries", compile_libraries)
    own = compiled("one", "x")
    assert compiled("one", "x") == own and builds == [own]
    kept = compiled("two", "x")
    assert tmp_path / "cache" in kept.parents and len(builds) == 1
    files = [path.relative_to(own) for path in own.rglob("*") if path.name != resources.STAMP]
    assert sorted(files) == sorted(path.relative_to(kept) for path in kept.rglob("*"))
    assert compiled("two", "y") == tmp_path / "two" / "build" / "plugins" and len(builds) == 2


@pytest.mark.slow
def test_no_kernel_spills(compiled: Path, tools: Toolchain) -> None:
    table = resources.read_resources(compiled)
    sources = {path.name for path in (ROOT / "plugins" / "kernels").glob("*.cu")}
    with_kernels = {
        name for name in sources if "__global__" in (ROOT / "plugins/kernels" / name).read_text()
    }
    assert with_kernels <= {name.partition(": ")[0] for name in table} <= sources
    targets = [str(target) for target in resources.architectures(tools)]
    spilling = {}
    for name, row in table.items():
        assert list(row) == targets, name
        bytes_by_target = {target: usage["spill_bytes"] for target, usage in row.items()}
        if any(bytes_by_target.values()):
            spilling[name] = bytes_by_target
    assert spilling == {}


@pytest.mark.slow
def test_the_table_of_resources_is_current(compiled: Path, tools: Toolchain) -> None:
    committed = json.loads(TABLE.read_text(encoding="utf-8"))
    table = resources.read_resources(compiled)
    assert set(committed["kernels"]) == set(table), REGENERATE
    if committed["cuda"] != tools.cuda_version:
        pytest.skip(reason=f"the table is of CUDA {committed['cuda']}, not {tools.cuda_version}")
    for name, row in table.items():
        assert {target: committed["kernels"][name][target] for target in row} == row, REGENERATE


@pytest.mark.slow
def test_library_exports_the_header_and_nothing_else(
    compiled: Path, library: KernelLibrary, tools: Toolchain
) -> None:
    output = subprocess.run(
        ["nm", "-D", "--defined-only", compiled / FILE_NAME],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exported = set(re.findall(r" [TWVBDR] (\w+)", output))
    assert exported == {*interface.FUNCTIONS, *interface.QUERIES}
    assert library.architectures == resources.architectures(tools)


@pytest.mark.slow
def test_library_needs_no_cuda_installation(compiled: Path) -> None:
    output = subprocess.run(
        ["readelf", "-d", compiled / FILE_NAME], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", output)
    assert needed and not [name for name in needed if "cuda" in name or "stdc++" in name]
    # What throws brings half of the C++ runtime, and with it the newest symbols of glibc.
    objects = sorted(compiled.glob("CMakeFiles/awq_edge_kernels.dir/kernels/*.o"))
    undefined = subprocess.run(
        ["nm", "-uC", *objects], capture_output=True, text=True, check=True
    ).stdout
    assert "cudaLaunchKernelExC" in undefined
    assert re.findall(r" U (std::.*|operator (?:new|delete).*|__cxa_throw)", undefined) == []


@pytest.mark.slow
@pytest.mark.skipif(
    kernels.compute_capability(0) is not None, reason="these addresses would reach a GPU"
)
def test_refusals_name_the_values(library: KernelLibrary) -> None:
    """Everything is checked on the host, before a GPU is asked for anything."""
    half, aligned = Dtype.FLOAT16, 16
    refused = [
        ("awq_edge_activation", (None, None, aligned, 1, 8, 8, 0, half), "gate is .nil."),
        ("awq_edge_activation", (aligned, 3, aligned, 1, 8, 8, 0, half), "up is 0x3"),
        ("awq_edge_activation", (aligned, None, 8, 1, 8, 8, 0, half), "y is 0x8.* 16 bytes"),
        ("awq_edge_activation", (aligned, None, aligned, 1, 8, 7, 0, half), "stride is 7"),
        ("awq_edge_activation", (aligned, None, aligned, 1, 8, 8, 5, half), "activation is 5"),
        ("awq_edge_activation", (aligned, None, aligned, 1, 8, 8, 0, Dtype.INT8), "dtype is 2"),
        ("awq_edge_embedding", (4, aligned, aligned, 1, 8, 9, 1.0, half), "ids is 0x4.* 8 bytes"),
        ("awq_edge_embedding", (8, aligned, aligned, 1, 8, 0, 1.0, half), "vocab is 0"),
        ("awq_edge_logits", (aligned, 32, 1, 8, 1.0, -1.0, half, half), "soft_cap is -1"),
        ("awq_edge_logits", (aligned, 32, 1, 8, 1.0, 0.0, half, 1), "y_dtype is 1"),
        ("awq_edge_logits", (16, 16, 1, 8, 1.0, 0.0, half, Dtype.FLOAT32), "differ in dtype"),
        ("awq_edge_add_positions", (16, 8, 4, 16, 1, 1, 8, 9, half), "row_begin is 0x4"),
        ("awq_edge_add_positions", (16, 8, None, 16, 0, 1, 8, 9, half), "batch is 0"),
        ("awq_edge_gather_rows", (aligned, 8, aligned, -3, 8, half), "count is -3"),
        ("awq_edge_advance", (8, 0, 1), "batch is 0"),
    ]
    for name, arguments, words in refused:
        with pytest.raises(KernelError, match=rf"^{name}: .*{words}"):
            library.call(name, *arguments, None)
    refuses_norms(library)
    given = {"rows": 2, "vocab": 100, "logits": 16, "step": 8, "ids": 8, "sampling": 8}
    for fields, words in [
        ({"logits": 8}, "logits is 0x8"),
        ({"step": None}, "step is .nil."),
        ({"sampling": 4}, "sampling is 0x4"),
        ({"greedy": 1, "sampling": None, "counts": 4}, "sampling is .nil."),
        ({"mask": 2}, "one is 0x2"),
        ({"dtype": Dtype.FLOAT32}, "dtype is 3"),
        ({}, r"workspace has 64 bytes, 2 rows need \d+"),
    ]:
        sampler = interface.Sampler(**{**given, **fields})
        with pytest.raises(KernelError, match=words):
            library.call("awq_edge_sample", sampler, aligned, 64, None)
    for rows, vocab, words in [(0, 9, "rows is 0"), (1, 262145, "vocab is 262145")]:
        with pytest.raises(KernelError, match=words):
            library.size("awq_edge_sample_workspace", rows, vocab)


def refuses_norms(library: KernelLibrary) -> None:
    given = {"rows": 1, "size": 8, "x": 16, "weight": 16, "y": 16, "residual_scale": 1.0}
    for fields, words in [
        ({"rows": 0}, "rows is 0"),
        ({"eps": -1.0}, "eps is -1"),
        ({"kind": 2}, "kind is 2"),
        ({"dtype": Dtype.INT8}, "dtype is 2"),
        ({"x": None}, "x is .nil."),
        ({"weight": None}, "weight is .nil."),
        ({"bias": 8}, "bias is 0x8"),
        ({"residual": 16}, "the same tensor"),
        ({"post_weight": 16}, "post_weight without a residual"),
        ({"residual": 32, "residual_scale": 0.0}, "residual_scale is 0"),
        ({"y": None}, "y and residual are both null"),
    ]:
        norm = interface.NormParameters(**{**given, **fields})
        with pytest.raises(KernelError, match=rf"^awq_edge_normalize: .*{words}"):
            library.call("awq_edge_normalize", norm, None)
