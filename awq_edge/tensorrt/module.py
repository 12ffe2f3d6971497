"""TensorRT's Python module under either of its names: tensorrt, and tensorrt_rtx for RTX GPUs."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from awq_edge.artifacts.cache import cache_directory
from awq_edge.errors import RuntimeUnavailableError
from awq_edge.units import release

MODULES = ("tensorrt", "tensorrt_rtx")
# The oldest that the plugin is compiled for and was tried with: JetPack 6's, and the first RTX.
OLDEST = {"tensorrt": (10, 3), "tensorrt_rtx": (1, 0)}

# Linux's names inside the package tensorrt_rtx_libs.
_RTX = "libtensorrt_rtx.so"
_RTX_PARSER = "libtensorrt_onnxparser_rtx.so"
_RTX_MAJOR = ".1"


def load_tensorrt(name: str = "") -> ModuleType:
    """Import TensorRT so that its ONNX parser finds plugins.

    name: "tensorrt" or "tensorrt_rtx"; else the one that is imported already, then the first that
    is installed. Raises RuntimeUnavailableError where there is none, or where it is too old.
    """
    installed = [module for module in MODULES if importlib.util.find_spec(module) is not None]
    imported = [module for module in installed if module in sys.modules]
    wanted = name or next(iter([*imported, *installed]), "")
    if wanted not in installed:
        raise RuntimeUnavailableError(
            f"{wanted or 'TensorRT'} is not installed; JetPack comes with tensorrt, "
            "RTX GPUs need `pip install 'awq-edge[rtx]'`"
        )
    if wanted == "tensorrt_rtx" and sys.platform == "linux":
        _let_parser_find_plugins(cache_directory())
    tensorrt = importlib.import_module(wanted)
    version = release(tensorrt.__version__)
    if version < OLDEST[wanted]:
        oldest = ".".join(map(str, OLDEST[wanted]))
        raise RuntimeUnavailableError(
            f"{wanted} is {tensorrt.__version__}, the plugin needs {oldest} or newer"
        )
    return tensorrt


@functools.cache
def _let_parser_find_plugins(cache: Path) -> None:
    """Make `dlopen("libtensorrt_rtx.so")` work inside TensorRT-RTX, once in a process.

    Its parser opens the library by that name when a plugin is added, and the process dies with
    "terminate called without an active exception" where it cannot: the wheel has only
    libtensorrt_rtx.so.1. The parser looks in the folder that it was itself loaded from, so both are
    loaded through a folder of links that has the missing name too. (Seen with 1.7.1.)
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or not spec.submodule_search_locations:
        return  # an installation other than the wheels': the loader's usual places
    libraries = Path(next(iter(spec.submodule_search_locations)))
    if (libraries / _RTX).exists() or _loads(_RTX):
        return
    if "tensorrt_rtx" in sys.modules:
        raise RuntimeUnavailableError(
            "tensorrt_rtx was imported before awq_edge could make its parser find plugins; call "
            "awq_edge.tensorrt.module.load_tensorrt() instead of the import, or put a link "
            f"{_RTX} to {libraries / (_RTX + _RTX_MAJOR)} into a folder of LD_LIBRARY_PATH"
        )
    installation = hashlib.sha256(str(libraries).encode()).hexdigest()[:12]
    links = cache / "tensorrt-rtx" / installation
    for link, target in (
        (_RTX, _RTX + _RTX_MAJOR),
        (_RTX + _RTX_MAJOR, _RTX + _RTX_MAJOR),
        (_RTX_PARSER + _RTX_MAJOR, _RTX_PARSER + _RTX_MAJOR),
    ):
        _link(links / link, libraries / target)
    for name in (_RTX, _RTX_PARSER):
        ctypes.CDLL(str(links / (name + _RTX_MAJOR)), mode=ctypes.RTLD_GLOBAL)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _link(link: Path, target: Path) -> None:
    """Make `link` point to `target`, also where another process does the same."""
    if link.is_symlink() and link.readlink() == target:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f"{link.name}.{os.getpid()}")
    temporary.symlink_to(target)
    temporary.replace(link)
