"""The result of `awq-edge fit` as JSON (docs/fit.md describes the keys)."""

from __future__ import annotations

from typing import Literal

from awq_edge.artifacts.schema import Manifest, Record
from awq_edge.fit.device import Source

Verdict = Literal["fits", "tight", "with_swap", "refused", "does_not_fit"]


class ModelPart(Record):
    """source: where the config is from. parameters: of the unquantized model."""

    name: str
    source: str
    model_type: str
    parameters: int
    max_positions: int


class SettingsPart(Record):
    """The settings of a prediction. bits: of most weights of the blocks, 16 for unquantized.
    kv_cache_dtype: the type that the cache is really in."""

    runtime: str
    bits: int
    group_size: int | None
    scheme: str | None
    lm_head_bits: int
    activation_dtype: str
    kv_dtype: Literal["float16", "int8"]
    kv_cache_dtype: str
    context: int
    prefill_chunk: int


class PredictedPart(Record):
    """Bytes, as in the run report."""

    weights: int
    kv_cache: int
    activations: int
    overhead: int
    total: int


class DevicePart(Record):
    """Bytes and bytes/s. usable_bytes: beside the system."""

    recipe: str
    description: str
    memory_bytes: int
    memory_source: Source
    system_reserved_bytes: int
    usable_bytes: int
    unified_memory: bool
    bandwidth_bytes_per_s: float | None
    bandwidth_source: Source | None


class RooflinePart(Record):
    """Tokens/s that reading the memory allows, with an empty cache and with a full one of
    `context` tokens."""

    empty: float
    full: float
    context: int


class PowerModePart(Record):
    """A power mode that slows the memory. roofline_empty: tokens/s."""

    name: str
    default: bool
    bandwidth_bytes_per_s: int
    roofline_empty: float


class StepPart(Record):
    """A step behind the prediction. takes_it: it would not refuse. words: why it refuses and its
    needs, or the memory it takes. swap_bytes: on a disk, that a build on the board needs."""

    step: Literal["export", "build", "run"]
    takes_it: bool
    words: str = ""
    swap_bytes: int = 0


class ChangePart(Record):
    """One way to need less. options: of the command line. total_bytes: predicted, with the change.
    makes_it_fit: the asked context then fits. available: a runtime here has it. quality: what it
    costs there."""

    change: str
    options: str
    total_bytes: int
    max_context: int
    makes_it_fit: bool
    available: bool
    quality: str


class FitReport(Manifest):
    """A prediction and its verdict (docs/fit.md). steps: behind it, in order. max_context: the most
    that fits, 0 for none. max_context_limit: what ends it. free_bytes: usable less predicted,
    negative where it is short. bytes_per_token: of weights. changes: in the order of their cost in
    quality, where the asked context does not fit. cheapest_change: the first that makes it fit,
    None where none does or none is needed."""

    format: Literal["awq-edge-fit"] = "awq-edge-fit"
    format_version: Literal[1] = 1
    verdict: Verdict
    reason: str
    model: ModelPart
    settings: SettingsPart
    device: DevicePart
    predicted_bytes: PredictedPart
    weight_bytes: dict[str, int]
    free_bytes: int
    max_context: int
    max_context_limit: Literal["memory", "model"]
    bytes_per_token: int
    kv_bytes_per_token: int
    roofline_tokens_per_s: RooflinePart | None
    power_modes: tuple[PowerModePart, ...]
    steps: tuple[StepPart, ...]
    changes: tuple[ChangePart, ...]
    cheapest_change: ChangePart | None
    notes: tuple[str, ...]


class FitCell(Record):
    """One model on one device. reason: of a step that refuses, or of the swap that it needs.
    roofline_tokens_per_s: with an empty cache."""

    model: str
    recipe: str
    verdict: Verdict
    reason: str
    total_bytes: int
    usable_bytes: int
    max_context: int
    roofline_tokens_per_s: float | None


class FitTable(Manifest):
    """`awq-edge fit --all`. cells: model by model, recipe by recipe. skipped: recipes whose memory
    this machine would have to tell, and why it does not."""

    format: Literal["awq-edge-fit-table"] = "awq-edge-fit-table"
    format_version: Literal[1] = 1
    cells: tuple[FitCell, ...]
    skipped: dict[str, str]
