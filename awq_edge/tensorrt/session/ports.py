"""An engine's inputs and outputs: its profiles, its KV cache, its logits; read from TensorRT."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from awq_edge.errors import ArtifactError

_ITEM_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "INT32": 4, "INT64": 8}
_IDS, _PAST, _POSITIONS, _LOGITS = "input_ids", "past_length", "logits_positions", "logits"
_FIXED = (_IDS, _PAST, _POSITIONS)


@dataclass(frozen=True)
class Profile:
    """An optimization profile: tokens that one execution may take, rows of logits it may give."""

    index: int
    min_tokens: int
    max_tokens: int
    max_rows: int

    def takes(self, tokens: int) -> bool:
        return self.min_tokens <= tokens <= self.max_tokens


@dataclass(frozen=True)
class CacheTensor:
    """Keys or values of a layer: an input, and the output that is the same memory. size: bytes."""

    past: str
    present: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class EnginePorts:
    """Inputs and outputs of an engine.

    logits_dtype: TensorRT's name.
    positions: of the KV cache that the engine wants.
    """

    profiles: tuple[Profile, ...]
    cache: tuple[CacheTensor, ...]
    positions: int
    logits_dtype: str

    @property
    def max_tokens(self) -> int:
        return max(profile.max_tokens for profile in self.profiles)

    @property
    def max_rows(self) -> int:
        return max(profile.max_rows for profile in self.profiles)

    @property
    def logits_item_bytes(self) -> int:
        return _ITEM_BYTES[self.logits_dtype]

    def profile_for(self, tokens: int) -> Profile | None:
        """The profile made for so many tokens: of those that take them the narrowest."""
        taking = [profile for profile in self.profiles if profile.takes(tokens)]
        return min(taking, key=lambda profile: profile.max_tokens, default=None)


@dataclass(frozen=True)
class Execution:
    """One run of the engine, for tokens start..start+tokens of a prompt.

    rows: wanted positions within them.
    """

    profile: Profile
    start: int
    tokens: int
    rows: tuple[int, ...]


def executions(
    ports: EnginePorts, chunk: int, count: int, wanted: Sequence[int]
) -> list[Execution]:
    """Executions that take `count` tokens, at most `chunk` at a time, with the wanted rows.

    wanted: positions within the tokens, increasing. An execution has no more rows than its
    profile gives, and a number of tokens that a profile takes: one between two profiles is split.
    """
    planned, start, first = [], 0, 0
    while start < count:
        tokens = min(chunk, count - start)
        while True:
            profile = ports.profile_for(tokens)
            if profile is None:
                tokens -= 1
                continue
            end = bisect_left(wanted, start + tokens, first)
            if end - first <= profile.max_rows:
                break
            tokens = wanted[first + profile.max_rows] - start
        rows = tuple(place - start for place in wanted[first:end])
        planned.append(Execution(profile, start, tokens, rows))
        start, first = start + tokens, end
    return planned


def read_ports(engine: Any, tensorrt: ModuleType, context: int, name: str) -> EnginePorts:
    """Read and check an engine's inputs and outputs.

    context: positions that the session wants; an engine whose cache has a fixed size takes that.
    name: of the engine's file, for messages. Raises ArtifactError for what no session can drive.
    """
    trt: Any = tensorrt
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    is_input = trt.TensorIOMode.INPUT
    inputs = [each for each in names if engine.get_tensor_mode(each) == is_input]
    outputs = [each for each in names if each not in inputs]
    past = [each for each in inputs if each.startswith("past.")]
    present = [f"present.{each.removeprefix('past.')}" for each in past]
    _check_names(name, inputs, {*_FIXED, *past}, "inputs")
    _check_names(name, outputs, {_LOGITS, *present}, "outputs")
    for each in names:
        if engine.get_tensor_location(each) != trt.TensorLocation.DEVICE:
            raise ArtifactError(
                f"{name} wants {each} in the host's memory, which the session keeps on the GPU; "
                "export and build the bundle again with this version"
            )
    profiles = tuple(_profile(engine, index) for index in range(engine.num_optimization_profiles))
    if not any(profile.takes(1) for profile in profiles):
        raise ArtifactError(f"{name} has no profile that takes a single token; build it again")
    positions = _positions(engine, past, context, name)
    cache = tuple(
        _cache_tensor(engine, old, new, positions, name)
        for old, new in zip(past, present, strict=True)
    )
    return EnginePorts(profiles, cache, positions, engine.get_tensor_dtype(_LOGITS).name)


def _check_names(name: str, actual: Sequence[str], wanted: set[str], kind: str) -> None:
    different = sorted(set(actual) ^ wanted)
    if different:
        raise ArtifactError(
            f"{name}: its {kind} differ from a decoder's in {', '.join(different)}; a session "
            "gives input_ids, past_length, logits_positions and past.*, and takes logits and the "
            "present.* that belong to them"
        )


def _profile(engine: Any, index: int) -> Profile:
    least, _, most = engine.get_tensor_profile_shape(_IDS, index)
    rows = engine.get_tensor_profile_shape(_POSITIONS, index)[2]
    return Profile(index, int(least[1]), int(most[1]), int(rows[1]))


def _positions(engine: Any, past: Sequence[str], context: int, name: str) -> int:
    """Positions that the KV cache has: the session's context, within what the engine takes."""
    if not past:
        raise ArtifactError(f"{name} has no inputs past.*: it is not a decoder with a KV cache")
    fixed = int(engine.get_tensor_shape(past[0])[2])
    least, most = fixed, fixed
    if fixed < 0:
        shapes = [
            engine.get_tensor_profile_shape(past[0], index)
            for index in range(engine.num_optimization_profiles)
        ]
        least = max(int(smallest[2]) for smallest, _, _ in shapes)
        most = min(int(largest[2]) for _, _, largest in shapes)
    if context > most:
        raise ArtifactError(
            f"{name} was built for {most} positions of the KV cache, {context} are asked for; "
            f"give --context {most} or less, or build the engine again"
        )
    return max(context, least)


def _cache_tensor(engine: Any, past: str, present: str, positions: int, name: str) -> CacheTensor:
    dtype = engine.get_tensor_dtype(past).name
    templates = [tuple(engine.get_tensor_shape(each)) for each in (past, present)]
    shape = (1, int(templates[0][1]), positions, *(int(size) for size in templates[0][3:]))
    fits = all(
        len(template) == len(shape)
        and all(size in (-1, ours) for size, ours in zip(template, shape, strict=True))
        for template in templates
    )
    if not fits or min(shape) < 1 or engine.get_tensor_dtype(present).name != dtype:
        raise ArtifactError(
            f"{name}: {past} {list(templates[0])} and {present} {list(templates[1])} cannot be "
            f"one buffer of {list(shape)}; export the bundle again with --attention plugin"
        )
    return CacheTensor(past, present, shape, math.prod(shape) * _ITEM_BYTES[dtype])
