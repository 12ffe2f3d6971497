"""Changes that make a model fit, the cheapest in quality first.

The order is that of what was measured on the demo model (docs/results.md: AWQ, perplexity above
that of 16 bits, which is 44.2), where it was. A shorter context costs no quality, but it is not
what was asked for, so it comes behind what can be done alone. Each change is tried alone, then all
of them one upon the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from awq_edge.fit.assess import SMALLEST_CONTEXT, Assessor, Prediction, Settings
from awq_edge.fit.report import ChangePart
from awq_edge.model.lm_head import UNQUANTIZED

_LARGEST_GROUP = 128


@dataclass(frozen=True)
class Step:
    """kind: a step replaces an earlier one of its kind. options: of the command line. available: a
    runtime has it. applies: to these settings. stored: possible with a quantized checkpoint."""

    kind: Literal["weights", "groups", "lm_head", "cache"]
    change: str
    options: str
    quality: str
    apply: Callable[[Settings], Settings]
    applies: Callable[[Settings], bool]
    available: bool = True
    stored: bool = False


_STEPS = (
    Step(
        "lm_head",
        "8-bit lm_head",
        "--lm-head-bits 8",
        "perplexity +0.006",
        lambda settings: replace(settings, lm_head_bits=8),
        lambda settings: settings.lm_head_bits == UNQUANTIZED and settings.bits != UNQUANTIZED,
    ),
    Step(
        "cache",
        "int8 KV cache",
        "--kv-dtype int8",
        "not measured",
        lambda settings: replace(settings, kv_dtype="int8"),
        lambda settings: settings.kv_dtype != "int8",
        available=False,
        stored=True,
    ),
    Step(
        "weights",
        "8-bit weights",
        "--bits 8 --lm-head-bits 8",
        "not measured",
        lambda settings: replace(settings, bits=8, lm_head_bits=8),
        lambda settings: settings.bits == UNQUANTIZED,
    ),
    Step(
        "weights",
        "4-bit weights",
        "--bits 4 --lm-head-bits 8",
        "perplexity +0.42",
        lambda settings: replace(settings, bits=4, lm_head_bits=8),
        lambda settings: settings.bits > 4,
    ),
    Step(
        "groups",
        "groups of 128",
        "--group-size 128",
        "perplexity +0.20 against groups of 32, +0.09 against 64",
        lambda settings: replace(settings, group_size=_LARGEST_GROUP),
        lambda settings: settings.group_size < _LARGEST_GROUP and settings.bits != UNQUANTIZED,
    ),
    Step(
        "lm_head",
        "4-bit lm_head",
        "--lm-head-bits 4",
        "perplexity +0.27",
        lambda settings: replace(settings, lm_head_bits=4),
        lambda settings: settings.lm_head_bits > 4 and settings.bits != UNQUANTIZED,
    ),
    Step(
        "weights",
        "3-bit weights",
        "--bits 3",
        "perplexity +0.56 against 4 bits, which cost +0.42",
        lambda settings: replace(settings, bits=3),
        lambda settings: 3 < settings.bits <= 4,
    ),
)


def find_changes(assessor: Assessor, prediction: Prediction) -> list[ChangePart]:
    """Every change that saves something, alone and then together, where the asked context does not
    fit; nothing where it does."""
    if prediction.max_context >= prediction.settings.context:
        return []
    stored = assessor.is_quantized
    steps = [step for step in _STEPS if (step.stored or not stored)]
    if not stored and assessor.group_choice(prediction.settings.bits).size != _LARGEST_GROUP:
        steps = [step for step in steps if step.kind != "groups"]  # they leave more in 16 bits
    changes = [
        _change(assessor, prediction, [step]) for step in steps if step.applies(prediction.settings)
    ]
    changes += _shorter(assessor, prediction, [], prediction)
    changes += _together(assessor, prediction, steps)
    return [change for change in changes if change.total_bytes < prediction.memory.total]


def cheapest(changes: list[ChangePart]) -> ChangePart | None:
    """The first that makes it fit and that a runtime has."""
    return next((each for each in changes if each.makes_it_fit and each.available), None)


def _together(
    assessor: Assessor, prediction: Prediction, steps: list[Step]
) -> Iterator[ChangePart]:
    """Steps one upon the other, each also with the context that it leaves room for."""
    taken: list[Step] = []
    settings = prediction.settings
    for step in steps:
        if step.available and step.applies(settings):
            taken = [*(each for each in taken if each.kind != step.kind), step]
            settings = step.apply(settings)
            if len(taken) > 1:
                yield _change(assessor, prediction, taken)
            yield from _shorter(assessor, prediction, taken, assessor.predict(settings))


def _change(assessor: Assessor, before: Prediction, steps: list[Step]) -> ChangePart:
    settings = before.settings
    for step in steps:
        settings = step.apply(settings)
    after = assessor.predict(settings)
    return ChangePart(
        change=" and ".join(step.change for step in steps),
        options=_options(steps),
        total_bytes=after.memory.total,
        max_context=after.max_context,
        makes_it_fit=after.max_context >= settings.context,
        available=all(step.available for step in steps),
        quality="; ".join(step.quality for step in steps),
    )


def _shorter(
    assessor: Assessor, before: Prediction, steps: list[Step], after: Prediction
) -> Iterator[ChangePart]:
    """The longest context that fits, where that is of use."""
    if not SMALLEST_CONTEXT <= after.max_context < before.settings.context:
        return
    shorter = assessor.predict(replace(after.settings, context=after.max_context))
    words = [*(step.change for step in steps), f"a context of {after.max_context:,} tokens"]
    yield ChangePart(
        change=" and ".join(words),
        options=f"{_options(steps)} --context {after.max_context}".strip(),
        total_bytes=shorter.memory.total,
        max_context=after.max_context,
        makes_it_fit=True,
        available=True,
        quality="; ".join([*(step.quality for step in steps), "none, up to that length"]),
    )


def _options(steps: list[Step]) -> str:
    """The options of all steps; of one that occurs twice the last value."""
    values: dict[str, str] = {}
    for step in steps:
        words = step.options.split()
        values |= dict(zip(words[0::2], words[1::2], strict=True))
    return " ".join(f"{option} {value}" for option, value in values.items())
