"""The header is read whole, and as a C compiler reads it."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from awq_edge.kernels import interface
from awq_edge.kernels.header import KernelHeader
from tests.compilers import HEADER

STRUCTS = {
    "awq_edge_w4a16_weight": interface.W4A16Weight,
    "awq_edge_dense_weight": interface.DenseWeight,
    "awq_edge_routing": interface.Routing,
    "awq_edge_norm": interface.NormParameters,
    "awq_edge_attention": interface.AttentionParameters,
    "awq_edge_sampling": interface.SamplingParameters,
    "awq_edge_sampler": interface.Sampler,
}
ENUMS = {
    "awq_edge_status": (interface.Status, "AWQ_EDGE_"),
    "awq_edge_dtype": (interface.Dtype, "AWQ_EDGE_"),
    "awq_edge_norm_kind": (interface.NormKind, "AWQ_EDGE_NORM_"),
    "awq_edge_activation_kind": (interface.Activation, "AWQ_EDGE_ACTIVATION_"),
    "awq_edge_epilogue": (interface.Epilogue, "AWQ_EDGE_EPILOGUE_"),
    "awq_edge_tactic": (interface.Tactic, "AWQ_EDGE_TACTIC_"),
}


def _code() -> str:
    """The header without comments."""
    return re.sub(r"/\*.*?\*/", " ", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_no_function_of_the_header_is_overlooked() -> None:
    assert len(interface.FUNCTIONS) + len(interface.QUERIES) == _code().count("\nAWQ_EDGE_API ")
    assert interface.QUERIES["awq_edge_status_message"] == (ctypes.c_char_p, (ctypes.c_int,))
    assert interface.QUERIES["awq_edge_abi_version"] == (ctypes.c_int, ())
    assert interface.FUNCTIONS["awq_edge_sample"] == (
        *(ctypes.POINTER(interface.Sampler), ctypes.c_void_p),
        *(ctypes.c_size_t, ctypes.c_void_p),
    )
    assert interface.FUNCTIONS["awq_edge_advance"] == (
        *(ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p),
    )
    assert interface.FUNCTIONS["awq_edge_sample_workspace"][-1] == ctypes.POINTER(ctypes.c_size_t)


def test_no_enumerator_of_the_header_is_overlooked() -> None:
    for name, (enum, prefix) in ENUMS.items():
        match = re.search(rf"enum {name} {{(.*?)}}", _code(), flags=re.DOTALL)
        assert match is not None, name
        values = {
            key.removeprefix(prefix): int(value)
            for key, value in re.findall(r"(\w+)\s*=\s*(\d+)", match[1])
        }
        assert values == {member.name: member.value for member in enum}, name


def test_an_epilogue_is_an_activation_with_or_without_a_gate() -> None:
    for epilogue in interface.Epilogue:
        activation, gate = epilogue.activation, "_MUL" if epilogue.paired else ""
        assert epilogue.name == ("NONE" if activation is None else activation.name + gate)


def test_a_type_that_the_reader_does_not_know_is_no_int() -> None:
    header = KernelHeader(
        "typedef struct { int8_t flag; } odd;\nAWQ_EDGE_API int awq_edge_odd(double x);\n"
    )
    with pytest.raises(KeyError, match="int8_t"):
        header.fields("odd")
    with pytest.raises(KeyError, match="double"):
        header.functions({})
    with pytest.raises(KeyError, match="missing"):
        header.fields("missing")


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
