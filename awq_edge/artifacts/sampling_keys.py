"""Sampling as it is configured: by a model, a bundle, a flag or a request, each key by itself.

    the set of a bundle      generation_config.json, else the four of FALLBACK
    over it, key by key      an option of `export`, a flag of run, chat or serve, a request

`awq_edge.runtime.sampling.Sampling` is what comes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from awq_edge.artifacts.schema import Record
from awq_edge.errors import ConfigError, ModelError
from awq_edge.flags import Flag

GENERATION_CONFIG = "generation_config.json"


def _whole_number(value: object) -> object:
    """40.0, as programs that know one kind of number write 40."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def off(*values: float, means: float | None) -> BeforeValidator:
    """A validator: each of `values` is a client's word for "off", which `means` says here."""

    def replace(value: object) -> object:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return means if number and value in values else _whole_number(value)

    return BeforeValidator(replace)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("Input should be a finite number")
    return value


Temperature = Annotated[float, Field(ge=0), AfterValidator(_finite)]
TopK = Annotated[int, Field(ge=0), off(-1, means=0)]
TopP = Annotated[float, Field(gt=0, le=1), off(0, -1, means=1.0)]
MinP = Annotated[float, Field(ge=0, le=1), off(-1, means=0.0)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10), off(0, -1, means=1.0)]


class SamplingKeys(Record, strict=True):
    """Some of the keys of `Sampling`; None: not said. top_p 0 and top_k -1, which clients send
    for "off", are taken as 1 and 0."""

    temperature: Annotated[Temperature | None, Flag("0 takes the likeliest token")] = None
    top_k: Annotated[TopK | None, Flag("Draw from the k likeliest; 0: from all")] = None
    top_p: Annotated[TopP | None, Flag("Draw from the likeliest that sum to p; 1: from all")] = None
    min_p: Annotated[
        MinP | None, Flag("Draw from those at least p times as likely as the likeliest")
    ] = None
    repetition_penalty: Annotated[RepetitionPenalty | None, Flag("1 is none")] = None

    def given(self) -> dict[str, Any]:
        """The keys that are said, with their values."""
        return self.model_dump(exclude_none=True)

    def over(self, base: SamplingKeys) -> SamplingKeys:
        """The keys of this set, and of `base` where this set does not name them."""
        return SamplingKeys(**{**base.given(), **self.given()})

    def __str__(self) -> str:
        if self.temperature == 0:
            penalty = self.repetition_penalty
            return "greedy" + ("" if penalty is None else f", repetition_penalty {penalty:g}")
        return ", ".join(f"{key} {value:g}" for key, value in self.given().items())


# Where a model names none: what local servers have in common. Without a filter, a small model
# draws from the tail of its distribution within a sentence.
FALLBACK = SamplingKeys(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)

_NAMES = tuple(SamplingKeys.model_fields)
_DRAWING = ("temperature", "top_k", "top_p", "min_p")


def sampling_of(generation_config: Mapping[str, Any], where: object) -> SamplingKeys | None:
    """The model's own set in a generation_config.json; None where it names none.

    do_sample false is greedy. A key that the set does not name is off. where: for the error.
    Raises ModelError for a value that no sampler can have.
    """
    keys = {key: generation_config.get(key) for key in _NAMES}
    draws = generation_config.get("do_sample")
    if draws is not None and not isinstance(draws, bool):
        raise ModelError(f"{where}: do_sample is {_shown(draws)}; it must be true or false")
    if draws is False:
        keys = {"temperature": 0, "repetition_penalty": keys["repetition_penalty"]}
    elif all(keys[key] is None for key in _DRAWING):
        penalty = keys["repetition_penalty"]
        if penalty is None:
            return None
        keys = {**FALLBACK.given(), "repetition_penalty": penalty}
    elif keys["temperature"] is None:
        keys["temperature"] = 1.0
    try:
        return SamplingKeys.model_validate(keys)
    except ValidationError as error:
        raise ModelError(
            f"{where}: {_problem(error)}; correct the file, or take the key out of it"
        ) from None


def default_sampling(
    bundle: SamplingKeys | None, generation_config: Mapping[str, Any], where: object
) -> SamplingKeys:
    """The keys that chat and serve draw by. bundle: the manifest's set, which older bundles do not
    have: they have the model's file. Raises ModelError."""
    if bundle is not None:
        return bundle
    return sampling_of(generation_config, where) or FALLBACK


def check_sampling(values: Mapping[str, object], option: str | None = None) -> SamplingKeys:
    """Keys that a person gave. option: what they came by, for the error; None where each key has an
    option of its own. Raises ConfigError."""
    unknown = [key for key in values if key not in _NAMES]
    if unknown and option is not None:
        raise ConfigError(f"{option}: there is no {unknown[0]!r}; there are {', '.join(_NAMES)}")
    try:
        return SamplingKeys.model_validate(dict(values))
    except ValidationError as error:
        if option is not None:
            raise ConfigError(f"{option}: {_problem(error)}") from None
        key, value, problem = _parts(error)
        raise ConfigError(f"--{key.replace('_', '-')} {value}: {problem}") from None


def parse_sampling(text: str, option: str) -> SamplingKeys:
    """Keys of "temperature=0.6,top_p=0.9", or "greedy". Raises ConfigError."""
    if text.strip() == "greedy":
        return SamplingKeys(temperature=0)
    values: dict[str, object] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        try:
            values[key] = float(value) if equals else None
        except ValueError:
            values[key] = None
        if values[key] is None:
            raise ConfigError(
                f"{option} {text}: {item.strip()!r} is not KEY=NUMBER; give for example "
                "temperature=0.6,top_p=0.9, or greedy"
            )
    return check_sampling(values, f"{option} {text}")


def _problem(error: ValidationError) -> str:
    key, value, problem = _parts(error)
    return f"{key} is {value}; it {problem}"


def _parts(error: ValidationError) -> tuple[str, str, str]:
    """Key, value and rule ("must be ...") of the first error."""
    first = error.errors(include_url=False, include_context=False)[0]
    rule = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return str(first["loc"][0]), _shown(first["input"]), rule


def _shown(value: object) -> str:
    return repr(value)[:60]
