"""Every module imports on a device, and none drags in what only a host has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import BareEnvironment

# Modules that need the [host] extra, or torch of the [cuda] extra; everything else must import on a
# base install.
HOST_ONLY = (
    "awq_edge.runtime.backends.cuda.device_torch",
    "awq_edge.exporter",
    "awq_edge.pipeline",
    "awq_edge.quantizer",
    "awq_edge.device.torch_device",
    "awq_edge.model.torch_tensors",
    "awq_edge.evaluate.comparison",
    "awq_edge.evaluate.torch_models",
    "awq_edge.evaluate.torch_task_model",
)
# Of those packages, the modules that a device imports too.
BASE_PARTS = (
    "awq_edge.exporter",
    "awq_edge.exporter.checks",
    "awq_edge.exporter.checks_cuda",
    "awq_edge.exporter.cuda_arena",
    "awq_edge.exporter.emit_cuda",
)
# Modules that need the [eval] extra, and no host package.
EVAL_ONLY = ("awq_edge.evaluate.harness",)
# Modules that need the [serve] extra; the rest of awq_edge.serve imports without it.
SERVE_ONLY = (
    "awq_edge.serve.answer",
    "awq_edge.serve.app",
    "awq_edge.serve.grammar",
    "awq_edge.serve.metrics",
    "awq_edge.serve.protocol",
    "awq_edge.serve.server",
    "awq_edge.serve.service",
)
SERVE_PACKAGES = {"fastapi", "llguidance", "prometheus_client", "sse_starlette", "uvicorn"}
HOST_PACKAGES = {
    "torch",
    "transformers",
    "onnx",
    "onnx_graphsurgeon",
    "ml_dtypes",
    "matplotlib",
    "gguf",
    "PIL",
    "ray",
}
# What `--help` has no use for, over a tenth of a second each. typer loads pydantic for the options
# of a command, and so do the fields that they are made of: not before that command is used.
HELP_PACKAGES = HOST_PACKAGES | {
    *SERVE_PACKAGES,
    "datasets",
    "huggingface_hub",
    "jinja2",
    "lm_eval",
    "numpy",
    "onnxruntime",
    "rich",
    "safetensors",
    "tokenizers",
}

# Imports each module by itself and prints {module: [error or null, heavy packages it brought]}.
_IMPORT_ALL = """
import importlib, json, pathlib, sys
import awq_edge
heavy, seen, report = set(json.loads(sys.argv[1])), set(), {}
# By file name: pkgutil.walk_packages imports each package that it walks into.
root = pathlib.Path(awq_edge.__file__).parent
files = [path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py")]
names = sorted(".".join(file.parts).removesuffix(".__init__") for file in files)
host_last = sorted(names, key=lambda name: name.startswith(tuple(json.loads(sys.argv[2]))))
for name in host_last:
    try:
        importlib.import_module(name)
        error = None
    except ModuleNotFoundError as missing:
        error = missing.name
    loaded = {module.partition(".")[0] for module in sys.modules} & heavy
    report[name] = [error, sorted(loaded - seen)]
    seen |= loaded
print(json.dumps(report))
"""


def _is_host_only(module: str) -> bool:
    if module in BASE_PARTS:
        return False
    return any(module == name or module.startswith(f"{name}.") for name in HOST_ONLY)


def _arguments() -> list[str]:
    return ["-c", _IMPORT_ALL, json.dumps(sorted(HOST_PACKAGES)), json.dumps(HOST_ONLY)]


def test_every_module_imports_on_a_base_install(bare: BareEnvironment, tmp_path: Path) -> None:
    result = bare.run("python", *_arguments(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert {"awq_edge.cli", "awq_edge.recipe", "awq_edge.evaluate.perplexity"} <= set(report)
    for module, (missing, _) in report.items():
        if module in EVAL_ONLY:
            assert missing == "lm_eval", f"{module} imports {missing}"
        elif module in SERVE_ONLY:
            assert missing in SERVE_PACKAGES, f"{module} imports {missing}"
        elif not _is_host_only(module):
            assert missing is None, f"{module} imports {missing}"
        elif missing is not None:
            assert missing.partition(".")[0] in HOST_PACKAGES, f"{module} imports {missing}"


def test_no_module_of_a_device_imports_a_host_package() -> None:
    """Where the host packages are installed, a leak shows as an import, not as an error."""
    result = subprocess.run(
        [sys.executable, *_arguments()], capture_output=True, text=True, check=True
    )
    for module, (_, brought) in json.loads(result.stdout).items():
        if not _is_host_only(module):
            assert brought == [], f"{module} imports {', '.join(brought)}"


def test_the_list_of_host_modules_has_no_stale_entry() -> None:
    result = subprocess.run(
        [sys.executable, *_arguments()], capture_output=True, text=True, check=True
    )
    modules = set(json.loads(result.stdout))
    assert {*HOST_ONLY, *EVAL_ONLY, *SERVE_ONLY} <= modules


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["recipes", "--help"], ["eval", "--help"], ["quantize", "--help"]],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """The quick start-up of `awq-edge --help`, told by what it imports and not by a clock."""
    script = (
        "import json, sys\n"
        "sys.argv = ['awq-edge', *json.loads(sys.argv[1])]\n"
        "from awq_edge.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: awq-edge" in result.stdout
    loaded = {module.partition(".")[0] for module in json.loads(result.stderr)}
    assert loaded & (HELP_PACKAGES | ({"pydantic"} if len(arguments) == 1 else set())) == set()


def test_only_the_command_line_imports_typer_and_rich() -> None:
    import ast

    import awq_edge

    package = Path(awq_edge.__file__).parent
    for path in package.rglob("*.py"):
        if path.is_relative_to(package / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] not in ("typer", "rich"), f"{path} imports {name}"
