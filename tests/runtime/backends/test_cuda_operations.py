"""Calls that are not what their operation takes are refused when a program is loaded: nothing is
launched on memory that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awq_edge.errors import ArtifactError
from awq_edge.exporter.emit_cuda import emit_cuda
from awq_edge.exporter.writer import WeightPlan
from awq_edge.model.archs import decoder_from_config
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.program.build import build_program
from awq_edge.program.formats import Formats
from awq_edge.program.program import Quantized
from awq_edge.program.sources import PlannedSources
from awq_edge.program.storage import Storage, cuda_form
from awq_edge.recipe.recipes import load_recipe
from awq_edge.runtime.backends.cuda.executor import Executor
from awq_edge.runtime.backends.cuda.operations import OPERATIONS
from awq_edge.runtime.backends.cuda.program import Call, CudaProgram
from tests.arch_configs import tiny_config

from .host_kernels import HostDevice, HostKernels

CONTEXT = 32
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
# Together they have every operation but functions that epilogues apply.
MODEL_TYPES = ("qwen3_moe", "opt", "gemma2", "qwen3")
# Inputs that a call may lack.
OPTIONAL = {"zeros", "bias", "post_weight", "post_bias", "up", "residual", "q_norm", "k_norm"}


def program_of(model_type: str, *, dense: bool = False) -> CudaProgram:
    decoder = decoder_from_config({"model_type": model_type, **tiny_config(model_type, SIZES)})
    stored = Quantized(NumberFormat(4, 32, "asymmetric"), has_zeros=True)
    formats = Formats(None, lambda *_: None if dense else stored, None)
    program = build_program(decoder, formats)
    recipe = load_recipe("cuda")
    storage = Storage(cuda_form(recipe, program), PlannedSources())
    emitted = emit_cuda(program, storage, CONTEXT)
    return emitted.placed(WeightPlan.of(emitted.weights).offsets)


def load(program: CudaProgram) -> Executor:
    device = HostDevice()
    weights = device.zeros(program.weight_bytes)
    return Executor(program, weights, HostKernels(), device, context=CONTEXT, max_rows=8)


def programs() -> Iterator[CudaProgram]:
    yield from map(program_of, MODEL_TYPES)
    yield program_of("qwen3", dense=True)


def changed(program: CudaProgram, index: int, **values: object) -> CudaProgram:
    calls = list(program.calls)
    calls[index] = calls[index].model_copy(update=values)
    return program.model_copy(update={"calls": tuple(calls)})


def first_of_each() -> Iterator[Any]:
    """The first call of each operation, in a program that has it."""
    seen: set[str] = set()
    for program in programs():
        for index, call in enumerate(program.calls):
            if call.operation not in seen:
                seen.add(call.operation)
                yield pytest.param(program, index, id=call.operation)


def test_the_programs_have_what_a_model_is_made_of() -> None:
    used = {call.operation for program in programs() for call in program.calls}
    applied = {"gelu", "gelu_tanh", "relu", "relu_squared"}  # epilogues apply them
    assert used | applied == set(OPERATIONS)
    for program in programs():
        load(program)


@pytest.mark.parametrize(("program", "index"), list(first_of_each()))
def test_an_operand_that_is_missing(program: CudaProgram, index: int) -> None:
    call: Call = program.calls[index]
    for role in set(call.inputs) - OPTIONAL:
        if role.rpartition(".")[2] in OPTIONAL:
            continue
        inputs = {name: value for name, value in call.inputs.items() if name != role}
        with pytest.raises(ArtifactError, match=r"call.* of .*awq-edge export"):
            load(changed(program, index, inputs=inputs))
    with pytest.raises(ArtifactError, match="no rows, or mixed ones"):
        load(changed(program, index, outputs={}))


@pytest.mark.parametrize(("program", "index"), list(first_of_each()))
def test_an_attribute_that_is_missing_or_of_another_kind(program: CudaProgram, index: int) -> None:
    call: Call = program.calls[index]
    for name, value in call.attributes.items():
        for wrong in (None, 3 if isinstance(value, str) else "many"):
            others = {key: each for key, each in call.attributes.items() if key != name}
            attributes = others if wrong is None else others | {name: wrong}
            with pytest.raises(ArtifactError, match="call "):
                load(changed(program, index, attributes=attributes))


@pytest.mark.parametrize(("program", "index"), list(first_of_each()))
def test_a_tensor_of_another_size(program: CudaProgram, index: int) -> None:
    call: Call = program.calls[index]
    for role, name in call.inputs.items():
        place = program.tensors.get(name)
        if place is None or role == "table":  # any number of rows is a table of positions
            continue
        shape = (*place.shape[:-1], place.shape[-1] + 1)
        tensors = program.tensors | {name: place.model_copy(update={"shape": shape})}
        with pytest.raises(ArtifactError, match=r"is \w+ \[.*\], not \w+ \["):
            load(program.model_copy(update={"tensors": tensors}))


@pytest.mark.parametrize(("program", "index"), list(first_of_each()))
def test_a_buffer_of_another_width(program: CudaProgram, index: int) -> None:
    (name, *_) = (each for each in program.calls[index].outputs.values() if each in program.buffers)
    buffer = program.buffers[name]
    buffers = program.buffers | {name: buffer.model_copy(update={"width": buffer.width + 8})}
    with pytest.raises(ArtifactError, match="call "):
        load(program.model_copy(update={"buffers": buffers}))


def test_operations_and_states_that_are_not_there() -> None:
    program = program_of("qwen3")
    with pytest.raises(ArtifactError, match="no operation 'fly'"):
        load(changed(program, 0, operation="fly"))
    place = next(i for i, call in enumerate(program.calls) if call.operation == "cached_attention")
    call = program.calls[place]
    for outputs in ({"y": call.outputs["y"]}, call.outputs | {"key": call.outputs["value"]}):
        with pytest.raises(ArtifactError, match="'key' is not written in place"):
            load(changed(program, place, outputs=outputs))


def test_calls_in_another_order() -> None:
    """Rows of tokens come before the wanted ones."""
    program = program_of("qwen3")
    calls = (*program.calls[1:], program.calls[0])
    with pytest.raises(ArtifactError, match="no rows, or mixed ones"):
        load(program.model_copy(update={"calls": calls}))


class Sizes:
    vocab_size, context = SIZES["vocab_size"], CONTEXT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"arenas": p.arenas | {"tokens": 16}}, "lies outside of the arena of tokens"),
        (lambda p: {"vocab_size": 97}, "vocab_size is 97, that of the manifest 96"),
        (lambda p: {"context": 16}, "it has 16 positions, the manifest 32"),
        (lambda p: {"logits": p.scores}, "is no buffer of logits in float32"),
        (lambda p: {"tensors": {}}, r"names .*, which is not there"),
        (
            lambda p: {
                "views": {
                    name: view.model_copy(update={"column": 1 << 20})
                    for name, view in p.views.items()
                }
            },
            "is not within a buffer",
        ),
    ],
)
def test_what_a_program_says_of_itself(change: Any, message: str) -> None:
    program = program_of("qwen3")
    program.check("model.json", Sizes)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=message):
        program.model_copy(update=change(program)).check("model.json", Sizes)  # type: ignore[arg-type]


def test_a_new_operation_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its call is emitted, checked and launched without a word anywhere else."""
    program = program_of("opt", dense=True)
    assert "relu" in {call.operation for call in program.calls}
    kernels, relu = HostKernels(), OPERATIONS["relu"]
    monkeypatch.delitem(OPERATIONS, "relu")
    with pytest.raises(ArtifactError, match="no operation 'relu'"):
        load(program)
    monkeypatch.setitem(OPERATIONS, "relu", relu)
    device = HostDevice()
    weights = device.zeros(program.weight_bytes)
    executor = Executor(program, weights, kernels, device, context=CONTEXT, max_rows=8)
    with device.scope():
        executor.step()
    assert kernels.calls.count("awq_edge_activation") == SIZES["num_hidden_layers"]
