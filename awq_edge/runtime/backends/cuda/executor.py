"""A program over our kernels: its memory, one pass over some tokens, logits. Knows operations, and
nothing of models.

    ids ─ calls on rows of tokens ─ gather_rows(wanted) ─ calls on wanted rows ─ logits

Nothing is allocated after the constructor, so a pass over one token can be captured into a graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from awq_edge.artifacts.input_files import show
from awq_edge.errors import ArtifactError
from awq_edge.kernels.interface import COUNTER_BYTES, Sampler
from awq_edge.runtime.backends.cuda.device import Device
from awq_edge.runtime.backends.cuda.operands import Kernels, Memory, Operands, Tools
from awq_edge.runtime.backends.cuda.operations import KERNEL_DTYPES, OPERATIONS, Launch
from awq_edge.runtime.backends.cuda.program import (
    IDS,
    PAST_LENGTH,
    WANTED,
    Call,
    CudaProgram,
)
from awq_edge.runtime.memory import LOGITS_ROWS

_GATHER = "gather_rows"
_ID_BYTES = 8
_ALIGNMENT = 256


class Executor:
    """A program with its weights, one state and arenas for passes of up to `max_rows` tokens.

    Every method but the constructor queues work and returns; call them within the device's scope.

    Addresses on the device: state_input, int64 [past_length, -, token, -], one copy from the host
    sets both; token, in it, the input of `step`; ids, int64 [max_rows], the input of `run`; wanted,
    int64 [LOGITS_ROWS], the input of `row_logits`; logits, float32 [LOGITS_ROWS, vocab].
    """

    def __init__(
        self,
        program: CudaProgram,
        weights: int,
        kernels: Kernels,
        device: Device,
        *,
        context: int,
        max_rows: int,
    ) -> None:
        """weights: address of the weight file on the device. context: positions of the state.

        Raises ArtifactError for a call that no operation takes, ResourceError.
        """
        self.program = program
        self.context = context
        self._device = device
        self._room = {"tokens": max_rows, "wanted": LOGITS_ROWS}
        self._sizes: list[int] = []
        # Kernels want addresses that are multiples of 16.
        self.state_input = self._zeros(4 * _ID_BYTES)
        self.past_length, self.token = self.state_input, self.state_input + 2 * _ID_BYTES
        self.ids = self._zeros(max_rows * _ID_BYTES)
        self.wanted = self._zeros(LOGITS_ROWS * _ID_BYTES)
        self.state = self._placed_state()
        self._tools = Tools(
            kernels,
            device,
            KERNEL_DTYPES[program.activation_dtype],
            program.vocab_size,
            context,
            program.context,
        )
        arenas = {
            rows: self._zeros(size * self._room[rows]) for rows, size in program.arenas.items()
        }
        buffers = {
            name: arenas[buffer.rows] + buffer.offset * self._room[buffer.rows]
            for name, buffer in program.buffers.items()
        }
        tensors = {name: weights + place.offset for name, place in program.tensors.items()}

        def launches(calls: Sequence[Call], ids: int, places: dict[str, int]) -> list[Launch]:
            inputs = {IDS: ids, PAST_LENGTH: self.past_length, WANTED: self.wanted}
            memory = Memory(program, context, tensors, self.state, places, inputs)
            return [_prepared(call, memory, self._tools) for call in calls]

        body, head = _split(program)
        self.logits, self._scores = buffers[program.logits], buffers[program.scores]
        self._body = launches(body, self.ids, buffers)
        self._head = launches(head, self.ids, buffers)
        # One row is all rows that are wanted: the calls behind the gather read where it reads.
        rest = [call for call in head if call.operation != _GATHER]
        gathered = {
            call.outputs["y"]: buffers[call.inputs["x"]] for call in head if call not in rest
        }
        self._step_body = launches(body, self.token, buffers)
        self._step_head = launches(rest, self.token, buffers | gathered)
        self._workspace = self._placed_workspace(max_rows)

    @property
    def state_bytes(self) -> int:
        return self.program.state_bytes(self.context)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all memory but weights and state."""
        return sum(self._sizes) - self._state_size

    def run(self, rows: int) -> None:
        """Append the first `rows` of `ids` to the state."""
        self._queue(self._body, rows)

    def row_logits(self, count: int) -> None:
        """Logits of the rows `wanted[:count]` of the last pass, into `logits[:count]`."""
        self._queue(self._head, count)

    def step(self) -> None:
        """Append `token`; its logits into `logits[0]`."""
        self._queue(self._step_body, 1)
        self._queue(self._step_head, 1)

    def greedy_step(self) -> None:
        """Append `token`, and replace it with the likeliest next token."""
        self._queue(self._step_body, 1)
        self._queue(self._step_head, 1)
        sampler = Sampler(
            dtype=self._tools.dtype,
            rows=1,
            vocab=self.program.vocab_size,
            greedy=1,
            logits=self._scores,
            ids=self.token,
        )
        self._tools.call("awq_edge_sample", sampler, *self._workspace)
        self._tools.call("awq_edge_advance", self.past_length, 1, 1)

    def _queue(self, launches: Sequence[Launch], rows: int) -> None:
        for launch in launches:
            launch.queue(rows, self._workspace)

    def _placed_state(self) -> dict[str, int]:
        """Addresses of the states, in one block."""
        places, end = {}, 0
        for name, state in self.program.state.items():
            places[name] = end
            end += -(-state.nbytes(self.context) // _ALIGNMENT) * _ALIGNMENT
        base = self._zeros(end)
        self._state_size = end
        return {name: base + offset for name, offset in places.items()}

    def _placed_workspace(self, max_rows: int) -> tuple[int, int]:
        """Address and bytes of one workspace for all calls, which run one after the other."""
        sizes = [
            COUNTER_BYTES,
            self._tools.size("awq_edge_sample_workspace", 1, self.program.vocab_size),
        ]
        sizes += [launch.workspace_bytes(max_rows) for launch in self._body]
        sizes += [launch.workspace_bytes(LOGITS_ROWS) for launch in self._head]
        return self._zeros(max(sizes)), max(sizes)

    def _zeros(self, size: int) -> int:
        self._sizes.append(size)
        return self._device.zeros(size)


def _prepared(call: Call, memory: Memory, tools: Tools) -> Launch:
    operation = OPERATIONS.get(call.operation)
    if operation is None:
        raise ArtifactError(
            f"call of {show(call.name)}: this awq-edge has no operation {show(call.operation)}; "
            f"{CudaProgram.remedy}, or update awq-edge"
        )
    problem = operation.limits(sizes_of(call, memory.program))
    if problem is not None:
        raise ArtifactError(f"call of {show(call.name)}: {problem}; {CudaProgram.remedy}")
    return operation.prepare(Operands(call, memory), tools)


def sizes_of(call: Call, program: CudaProgram) -> dict[str, int | float | str]:
    """The attributes of a call, and the widths of its buffers by their roles."""
    sizes = dict(call.attributes)
    for role, name in {**call.inputs, **call.outputs}.items():
        buffer = program.views.get(name) or program.buffers.get(name)
        if buffer is not None:
            sizes[role] = buffer.width
    return sizes


def _split(program: CudaProgram) -> tuple[list[Call], list[Call]]:
    """Calls on rows of tokens, and on wanted rows. Raises ArtifactError where the first would have
    to wait for the second, or a call has no output with rows."""
    body: list[Call] = []
    head: list[Call] = []
    for call in program.calls:
        outputs = [
            program.buffers[name] for name in call.outputs.values() if name in program.buffers
        ]
        kinds = {buffer.rows for buffer in outputs}
        if len(kinds) != 1 or (kinds == {"tokens"} and head):
            raise ArtifactError(
                f"call of {show(call.name)}: no rows, or mixed ones; {CudaProgram.remedy}"
            )
        (head if kinds == {"wanted"} else body).append(call)
    return body, head
