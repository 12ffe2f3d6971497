"""The C header of the kernel library, read: its numbers, structs and functions for ctypes.

awq_edge_kernels.h is the specification of the library and the only place that has them. It is
written in the C that this reads: `#define AWQ_EDGE_NAME 1`, enumerators with their numbers, structs
of scalars and pointers, functions marked AWQ_EDGE_API. Anything else in it is a KeyError here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
)
from functools import cached_property
from pathlib import Path
from typing import Any

from awq_edge._package import PACKAGE
from awq_edge.errors import RuntimeUnavailableError

_SCALARS: dict[str, type[Any]] = {
    "int": c_int,
    "int32_t": c_int32,
    "int64_t": c_int64,
    "uint64_t": c_uint64,
    "size_t": c_size_t,
    "float": c_float,
}


class KernelHeader:
    """The text of the header, taken apart."""

    def __init__(self, text: str) -> None:
        self._code = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Values of macros and enumerators by name, without AWQ_EDGE_."""
        pattern = r"\bAWQ_EDGE_(\w+)(?: = | )(\d+)\b"
        return {name: int(value) for name, value in re.findall(pattern, self._code)}

    def fields(self, struct: str) -> tuple[tuple[str, type[Any]], ...]:
        """The fields of a struct in order, as ctypes declares them; pointers are addresses."""
        match = re.search(rf"typedef struct {{([^}}]*)}} {struct};", self._code)
        if match is None:
            raise KeyError(struct)
        fields: list[tuple[str, type[Any]]] = []
        for declaration in filter(str.strip, match[1].split(";")):
            kind, names = _split(declaration)
            type_ = c_void_p if kind.endswith("*") else _SCALARS[kind]
            fields += [(name.strip(), type_) for name in names.split(",")]
        return tuple(fields)

    def functions(
        self, structs: Mapping[str, type[Structure]]
    ) -> dict[str, tuple[type[Any], tuple[type[Any], ...]]]:
        """Name -> (type of the result, types of the arguments).

        structs: C name -> class. Structs and sizes are passed by reference, tensors as addresses.
        """
        pattern = re.compile(r"AWQ_EDGE_API\s+(int|const char\*)\s+(\w+)\(([^)]*)\);")
        pointers: dict[str, type[Any]] = {"size_t*": POINTER(c_size_t)}
        pointers |= {f"{name}*": POINTER(struct) for name, struct in structs.items()}

        def argument(declaration: str) -> type[Any]:
            kind = _split(declaration)[0]
            return pointers.get(kind, c_void_p) if kind.endswith("*") else _SCALARS[kind]

        return {
            name: (
                c_int if result == "int" else c_char_p,
                () if given == "void" else tuple(map(argument, given.split(","))),
            )
            for result, name, given in pattern.findall(self._code)
        }


def read_kernel_header() -> KernelHeader:
    """The header of this installation. Raises RuntimeUnavailableError where it is missing."""
    return KernelHeader(
        (sources_directory() / "include" / "awq_edge_kernels.h").read_text(encoding="utf-8")
    )


def sources_directory() -> Path:
    """The CUDA sources: of the installed package, or of this checkout.

    Raises RuntimeUnavailableError where they are in neither.
    """
    packaged = PACKAGE / "kernels" / "cuda_sources"
    for folder in (packaged, PACKAGE.parent / "plugins"):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise RuntimeUnavailableError(
        f"the CUDA sources are not in {packaged}; this installation is "
        "incomplete: install awq-edge again"
    )


def _split(declaration: str) -> tuple[str, str]:
    """The type of a declaration, without const, and what it declares."""
    match = re.fullmatch(r"(\w+(?: ?\*)?)\s*(.+)", declaration.replace("const ", "").strip(), re.S)
    if match is None:
        raise KeyError(declaration)
    return match[1].replace(" ", ""), match[2]
