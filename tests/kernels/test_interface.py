"""The ctypes mirror of the header agrees with the header, as a C compiler reads it."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from awq_edge.kernels import interface
from tests.compilers import HEADER

STRUCTS = {
    "awq_edge_w4a16_weight": interface.W4A16Weight,
    "awq_edge_attention": interface.AttentionParameters,
    "awq_edge_sampling": interface.Sampling,
}
ENUMS = {
    "awq_edge_status": (interface.Status, "AWQ_EDGE_"),
    "awq_edge_dtype": (interface.Dtype, "AWQ_EDGE_"),
    "awq_edge_epilogue": (interface.Epilogue, "AWQ_EDGE_EPILOGUE_"),
    "awq_edge_tactic": (interface.Tactic, "AWQ_EDGE_TACTIC_"),
}
# C types of parameters, without const and without the name.
SCALARS = {
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "size_t": ctypes.c_size_t,
    "float": ctypes.c_float,
}
POINTERS = {
    "awq_edge_w4a16_weight": ctypes.POINTER(interface.W4A16Weight),
    "awq_edge_attention": ctypes.POINTER(interface.AttentionParameters),
    "awq_edge_sampling": ctypes.POINTER(interface.Sampling),
    "size_t": ctypes.POINTER(ctypes.c_size_t),
    "void": ctypes.c_void_p,
    "int64_t": ctypes.c_void_p,
}
RESULTS = {"int": ctypes.c_int, "const char*": ctypes.c_char_p}


def _code() -> str:
    """The header without comments."""
    return re.sub(r"/\*.*?\*/", " ", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)


def _functions() -> dict[str, tuple[str, list[str]]]:
    """Name -> (type of the result, declarations of the parameters)."""
    pattern = re.compile(r"AWQ_EDGE_API\s+((?:const )?\w+\*?)\s+(\w+)\(([^)]*)\);")
    found = {}
    for result, name, parameters in pattern.findall(_code()):
        cleaned = [" ".join(part.split()) for part in parameters.split(",")]
        found[name] = (result, [] if cleaned == ["void"] else cleaned)
    return found


def _ctype(declaration: str) -> object:
    words = declaration.replace("const ", "").rpartition(" ")[0]
    return POINTERS[words[:-1]] if words.endswith("*") else SCALARS[words]


def test_every_function_of_the_header_is_in_the_table_with_its_types() -> None:
    functions = _functions()
    # None escaped the pattern.
    assert len(functions) == _code().count("\nAWQ_EDGE_API ")
    assert set(functions) == {*interface.FUNCTIONS, *interface.QUERIES}
    for name, (result, parameters) in functions.items():
        returns, arguments = interface.QUERIES.get(name) or (
            ctypes.c_int,
            interface.FUNCTIONS[name],
        )
        assert RESULTS[result] is returns, name
        assert [_ctype(parameter) for parameter in parameters] == list(arguments), name


def test_enumerators_and_constants_are_the_header_s() -> None:
    code = _code()
    for name, (enum, prefix) in ENUMS.items():
        match = re.search(rf"enum {name} {{(.*?)}}", code, flags=re.DOTALL)
        assert match is not None, name
        values = {
            key.removeprefix(prefix): int(value)
            for key, value in re.findall(r"(\w+)\s*=\s*(\d+)", match[1])
        }
        assert values == {member.name: member.value for member in enum}, name
    constants = dict(re.findall(r"#define AWQ_EDGE_(\w+) (\d+)", code))
    assert constants == {
        "ABI_VERSION": str(interface.ABI_VERSION),
        "LAYOUT_VERSION": str(interface.LAYOUT_VERSION),
        "COUNTER_BYTES": str(interface.COUNTER_BYTES),
    }


@pytest.mark.parametrize("name", STRUCTS)
def test_fields_have_the_offsets_and_sizes_of_the_compiler(
    name: str, gcc: str, tmp_path: Path
) -> None:
    struct = STRUCTS[name]
    match = re.search(rf"typedef struct {{([^}}]*)}} {name};", _code())
    assert match is not None
    declared = re.findall(r"(\w+)(?=[,;])", match[1])
    assert [field for field, *_ in struct._fields_] == declared
    prints = "".join(
        f'  printf("%zu %zu\\n", offsetof({name}, {field}), sizeof((({name}*)0)->{field}));\n'
        for field in declared
    )
    source = tmp_path / "offsets.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n"
        f'#include "{HEADER}"\n'
        f'int main(void) {{\n{prints}  printf("%zu 0\\n", sizeof({name}));\n  return 0;\n}}\n'
    )
    subprocess.run([gcc, "-Wall", "-Werror", source, "-o", tmp_path / "offsets"], check=True)
    printed = subprocess.run([tmp_path / "offsets"], capture_output=True, text=True, check=True)
    *fields, (size, _) = (tuple(map(int, line.split())) for line in printed.stdout.splitlines())
    ours = [(getattr(struct, field).offset, getattr(struct, field).size) for field in declared]
    assert ours == fields
    assert ctypes.sizeof(struct) == size
