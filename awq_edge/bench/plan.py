"""The plan of a measurement: lengths, repeats, and prompts that are the same for every backend."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from awq_edge.errors import ConfigError

PROMPT_LENGTHS = (32, 128, 512, 2048)
GENERATED_LENGTHS = (64,)
WARMUP = 1
REPEATS = 5
SEED = 0
SAMPLE_INTERVAL = 0.1


@dataclass(frozen=True)
class Cell:
    """One combination of lengths, tokens."""

    prompt_tokens: int
    generated_tokens: int

    @property
    def positions(self) -> int:
        """Positions of the KV cache. The last generated token needs none."""
        return self.prompt_tokens + self.generated_tokens - 1


@dataclass(frozen=True)
class Plan:
    """Cells, in the order of a round; rounds of warm-up and rounds that count."""

    cells: tuple[Cell, ...]
    warmup: int = WARMUP
    repeats: int = REPEATS
    seed: int = SEED  # draws the prompts
    sample_interval: float = SAMPLE_INTERVAL  # seconds between two samples of memory and sensors

    @property
    def requests(self) -> int:
        """The number of requests."""
        return (self.warmup + self.repeats) * len(self.cells)


def check_numbers(warmup: int, repeats: int, seed: int, sample_interval: float) -> None:
    """Raise ConfigError for a number that is out of range, whatever the bundle."""
    for name, value, least in (
        ("--warmup", warmup, 0),
        ("--repeats", repeats, 1),
        ("--seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} {value}: must be {least} or more")
    if not 0.01 <= sample_interval <= 60:
        raise ConfigError(f"--sample-interval {sample_interval}: must be from 0.01 to 60 seconds")


def make_plan(
    context: int,
    *,
    prompt_lengths: Sequence[int] | None = None,
    generated_lengths: Sequence[int] | None = None,
    warmup: int = WARMUP,
    repeats: int = REPEATS,
    seed: int = SEED,
    sample_interval: float = SAMPLE_INTERVAL,
) -> Plan:
    """Every prompt length with every generated length.

    context: positions of the KV cache.

    Lengths of None are the defaults that fit, or else a quarter of the context. Raises ConfigError
    for numbers out of range and for given lengths that do not fit.
    """
    check_numbers(warmup, repeats, seed, sample_interval)
    generated = _lengths("--generated", generated_lengths) or tuple(
        min(length, max(1, context // 2)) for length in GENERATED_LENGTHS
    )
    prompts = _lengths("--prompt", prompt_lengths)
    if prompts is None:
        fitting = [p for p in PROMPT_LENGTHS if p + max(generated) - 1 <= context]
        prompts = tuple(fitting) or (max(1, context // 4),)
    cells = tuple(Cell(p, g) for g in generated for p in prompts)
    for cell in cells:
        if cell.positions > context:
            raise ConfigError(
                f"a prompt of {cell.prompt_tokens} tokens and {cell.generated_tokens} generated "
                f"ones need {cell.positions} positions, the context has {context}; give shorter "
                "--prompt or --generated lengths, or a larger --context"
            )
    return Plan(cells, warmup, repeats, seed, sample_interval)


def _lengths(flag: str, lengths: Sequence[int] | None) -> tuple[int, ...] | None:
    if not lengths:
        return None
    for length in lengths:
        if length < 1:
            raise ConfigError(f"{flag} {length}: must be 1 or more")
    return tuple(sorted(set(lengths)))


def parse_lengths(flag: str, text: str | None) -> tuple[int, ...] | None:
    """ "128,512" as numbers; None of None. Raises ConfigError naming the flag."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{flag} {text}: give whole numbers with commas between them, such as 128,512"
        ) from None


def prompt_ids(vocab_size: int, special: frozenset[int], length: int, seed: int) -> list[int]:
    """`length` ids, drawn evenly from the vocabulary without its special tokens.

    The same for every backend, machine and NumPy: RandomState's stream is frozen (NEP 19). A
    shorter prompt is the beginning of a longer one. Raises ConfigError when no id is left.
    """
    allowed = np.setdiff1d(np.arange(vocab_size), np.fromiter(special, dtype=np.int64))
    if not len(allowed):
        raise ConfigError(f"all {vocab_size} ids of the vocabulary are special tokens")
    drawn = np.random.RandomState(seed).randint(0, 2**31 - 1, size=length, dtype=np.int32)
    return [int(allowed[number % len(allowed)]) for number in drawn]


def ids_sha256(ids: Sequence[int]) -> str:
    """A hash of token ids: equal where two measurements had the same prompts."""
    return hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest()
