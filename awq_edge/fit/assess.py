"""From sizes and a device to a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from awq_edge.errors import ConfigError
from awq_edge.fit.device import DeviceFigures
from awq_edge.fit.models import ModelConfig
from awq_edge.fit.planner import BundleSizes, Planner
from awq_edge.fit.report import StepPart, Verdict
from awq_edge.fit.steps import PlannedModel, build_step, export_step, run_step
from awq_edge.model.group_size import GroupChoice, choose_group_size
from awq_edge.model.lm_head import UNQUANTIZED, for_export
from awq_edge.program.formats import Formats, planned_formats, stored_formats
from awq_edge.recipe.recipes import Recipe
from awq_edge.runtime.memory import KvDtype, PredictedMemory, kv_cache_bytes, predict_memory

# Fewer tokens than this are of no use: a question and a short answer.
SMALLEST_CONTEXT = 64
# Of the usable memory. The prediction is within a few per cent, and what the system keeps varies.
TIGHT_SHARE = 0.05


@dataclass(frozen=True)
class Settings:
    """The free choices. bits: 2, 3, 4, 8, or 16 for unquantized. context: tokens, clipped to what
    the model allows."""

    bits: int
    group_size: int
    lm_head_bits: int
    kv_dtype: KvDtype
    context: int


@dataclass(frozen=True)
class Prediction:
    """sizes, memory: for `settings.context`. max_context: the longest that fits, 0 for none, by
    what it is limited."""

    settings: Settings
    formats: Formats
    sizes: BundleSizes
    memory: PredictedMemory
    max_context: int
    max_context_limit: Literal["memory", "model"]

    @property
    def context_that_fits(self) -> int:
        return min(self.settings.context, self.max_context)


class Assessor:
    """Predicts one model for one recipe under different settings."""

    def __init__(self, model: ModelConfig, recipe: Recipe, device: DeviceFigures) -> None:
        self.model = model
        self.recipe = recipe
        self.device = device

    def default_settings(self) -> Settings:
        """The recipe's settings; for a quantized checkpoint its config's."""
        quantization = self.recipe.quantization
        stored = stored_formats(
            self.model.decoder, self.model.config, quantization.lm_head_bits, self.model.path
        )
        context = self.clip(None)
        if stored is not None and stored.main is not None:
            main = stored.main
            return Settings(main.bits, main.group_size, stored.lm_head_bits, "float16", context)
        groups, head = quantization.group_size, quantization.lm_head_bits
        if quantization.method == "none":
            return Settings(UNQUANTIZED, groups, UNQUANTIZED, "float16", context)
        return Settings(quantization.bits, groups, head, "float16", context)

    def group_choice(self, bits: int) -> GroupChoice:
        """The groups that an export takes where no size is asked for; at 16 bits the groups of
        the recipe's bits."""
        asked = None if bits == UNQUANTIZED else bits
        recipe = self.recipe.resolved({"quantization.bits": asked})
        return choose_group_size(for_export(recipe), self.model.decoder)

    def clip(self, context: int | None) -> int:
        """Tokens of the KV cache. Raises ConfigError for more than the model allows."""
        longest = self.model.decoder.max_positions
        if context is None:
            return min(self.recipe.export.context, longest)
        if context > longest:
            raise ConfigError(
                f"--context {context} is beyond the {longest} positions of {self.model.name}; "
                f"give {longest} or less"
            )
        return context

    @property
    def is_quantized(self) -> bool:
        """True for a quantized checkpoint, whose bits and groups cannot be chosen any more."""
        return self._stored(UNQUANTIZED) is not None

    def predict(self, settings: Settings) -> Prediction:
        """Raises ConfigError for settings that a recipe does not allow."""
        formats = self._formats(settings)
        planner = Planner(self.model.decoder, formats, self.recipe)

        def memory(context: int) -> PredictedMemory:
            return predict_memory(planner.sizes(context), context, settings.kv_dtype)

        longest = self.model.decoder.max_positions
        most = largest_context(lambda tokens: memory(tokens).total, self.device.usable, longest)
        return Prediction(
            settings=settings,
            formats=formats,
            sizes=planner.sizes(settings.context),
            memory=memory(settings.context),
            max_context=most,
            max_context_limit="model" if most == longest else "memory",
        )

    def steps(self, prediction: Prediction) -> tuple[StepPart, ...]:
        """Export, build and run of the prediction, with the longest context that fits."""
        settings = prediction.settings
        model = PlannedModel(Path(self.model.name), self.model.decoder, prediction.formats)
        weights = sum(prediction.sizes.part_bytes.values())
        recipe = (
            self._with(settings)
            if settings.bits != UNQUANTIZED
            else self.recipe.resolved(
                {"quantization.method": "none", "quantization.lm_head_bits": settings.lm_head_bits}
            )
        )
        build = build_step(weights, recipe, self.device)
        return (
            export_step(model, recipe, prediction.context_that_fits or settings.context),
            *([build] if build is not None else []),
            run_step(settings.kv_dtype),
        )

    def verdict(self, prediction: Prediction) -> Verdict:
        """The verdict that docs/fit.md defines."""
        usable = self.device.usable
        if prediction.max_context < min(SMALLEST_CONTEXT, prediction.settings.context):
            return "does_not_fit"
        steps = self.steps(prediction)
        if not all(step.takes_it for step in steps):
            return "refused"
        if any(step.swap_bytes for step in steps):
            return "with_swap"
        if prediction.memory.total > usable * (1 - TIGHT_SHARE):
            return "tight"
        return "fits"

    def roofline(self, prediction: Prediction, context: int) -> float | None:
        """Tokens/s with `context` positions in the cache."""
        if self.device.bandwidth is None:
            return None
        windows = self.model.decoder.windows  # a layer with a window reads no more keys than it
        read = sum(min(context, window or context) for window in windows) / len(windows)
        cache = read * kv_cache_bytes(prediction.sizes, 1, prediction.settings.kv_dtype)
        return self.device.bandwidth / (prediction.sizes.bytes_per_token + cache)

    def _formats(self, settings: Settings) -> Formats:
        stored = self._stored(settings.lm_head_bits)
        if stored is not None:
            return stored
        decoder = self.model.decoder
        if settings.bits == UNQUANTIZED:
            return planned_formats(decoder, None, settings.lm_head_bits)
        recipe = self._with(settings)
        return planned_formats(decoder, for_export(recipe).quantization, settings.lm_head_bits)

    def _with(self, settings: Settings) -> Recipe:
        """The recipe with the settings; for a quantized checkpoint, the output layer's alone."""
        if self.is_quantized:
            return self.recipe.resolved({"quantization.lm_head_bits": settings.lm_head_bits})
        return self.recipe.resolved(
            {
                "quantization.bits": settings.bits,
                "quantization.group_size": settings.group_size,
                "quantization.lm_head_bits": settings.lm_head_bits,
            }
        )

    def _stored(self, lm_head_bits: int) -> Formats | None:
        model = self.model
        return stored_formats(model.decoder, model.config, lm_head_bits, model.path)


def largest_context(total: Callable[[int], int], usable: int, longest: int) -> int:
    """The largest context, up to `longest`, whose total bytes are usable; 0 where not even one is.

    total: bytes by context, which grow with it.
    """
    if total(longest) <= usable:
        return longest
    low, high = 0, longest  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if total(middle) <= usable:
            low = middle
        else:
            high = middle
    return low
