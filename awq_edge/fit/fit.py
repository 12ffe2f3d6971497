"""`awq-edge fit`: one model on one device, or the table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from awq_edge.errors import ConfigError
from awq_edge.fit.assess import Assessor, Prediction, Settings
from awq_edge.fit.changes import cheapest, find_changes
from awq_edge.fit.device import DeviceFigures, device_figures
from awq_edge.fit.models import ModelConfig
from awq_edge.fit.report import (
    DevicePart,
    FitCell,
    FitReport,
    FitTable,
    ModelPart,
    PowerModePart,
    PredictedPart,
    RooflinePart,
    SettingsPart,
    StepPart,
    Verdict,
)
from awq_edge.model.lm_head import UNQUANTIZED
from awq_edge.program.formats import stored_coverage
from awq_edge.recipe.recipes import Recipe
from awq_edge.runtime.memory import KvDtype, kv_cache_bytes, packing_bytes
from awq_edge.units import size_text


@dataclass(frozen=True)
class Asked:
    """Options of the command line; None: the recipe's value, or a quantized checkpoint's."""

    bits: int | None = None
    group_size: int | None = None
    lm_head_bits: int | None = None
    kv_dtype: KvDtype = "float16"
    context: int | None = None


def fit(
    model: ModelConfig, recipe: Recipe, asked: Asked, device: DeviceFigures | None = None
) -> FitReport:
    """Predict and judge. device: None for the recipe's, or what this machine tells where the recipe
    leaves it to that.

    Raises ConfigError for options that contradict each other, the model or the recipe.
    """
    device = device_figures(recipe) if device is None else device
    assessor = Assessor(model, recipe, device)
    prediction = assessor.predict(_settings(assessor, asked))
    verdict, steps = assessor.verdict(prediction), assessor.steps(prediction)
    changes = find_changes(assessor, prediction)
    memory, sizes = prediction.memory, prediction.sizes
    return FitReport(
        verdict=verdict,
        reason=_reason(verdict, prediction, device, steps),
        model=ModelPart(
            name=model.name,
            source=model.source,
            model_type=model.decoder.model_type,
            parameters=model.parameters,
            max_positions=model.decoder.max_positions,
        ),
        settings=_settings_part(recipe, prediction),
        device=_device_part(recipe, device),
        predicted_bytes=PredictedPart(
            weights=memory.weights,
            kv_cache=memory.kv_cache,
            activations=memory.activations,
            overhead=memory.overhead,
            total=memory.total,
        ),
        weight_bytes={**sizes.part_bytes, "packing": packing_bytes(sizes)},
        free_bytes=device.usable - memory.total,
        max_context=prediction.max_context,
        max_context_limit=prediction.max_context_limit,
        bytes_per_token=sizes.bytes_per_token,
        kv_bytes_per_token=kv_cache_bytes(sizes, 1, prediction.settings.kv_dtype),
        roofline_tokens_per_s=_roofline(assessor, prediction),
        power_modes=_power_modes(recipe, prediction),
        steps=steps,
        changes=tuple(changes),
        cheapest_change=cheapest(changes),
        notes=tuple(_notes(assessor, prediction, asked.group_size is not None)),
    )


def fit_all(
    models: Iterable[ModelConfig],
    recipes: Iterable[Recipe],
    asked: Asked,
    change: Callable[[Recipe], Recipe] = lambda recipe: recipe,
) -> FitTable:
    """Every model on every device. The context is clipped to each model's; recipes whose memory
    this machine does not tell, or that cannot be changed so, are left out, and said so.

    Raises ConfigError where none is left.
    """
    devices: list[tuple[Recipe, DeviceFigures]] = []
    skipped: dict[str, str] = {}
    for recipe in recipes:
        try:
            changed = change(recipe)
            devices.append((changed, device_figures(changed)))
        except ConfigError as error:
            skipped[recipe.name] = str(error)
    if not devices:
        raise ConfigError(next(iter(skipped.values()), "there is no recipe"))
    cells = [
        _cell(Assessor(model, recipe, device), asked)
        for model in models
        for recipe, device in devices
    ]
    return FitTable(cells=tuple(cells), skipped=skipped)


def _cell(assessor: Assessor, asked: Asked) -> FitCell:
    longest = assessor.model.decoder.max_positions
    context = None if asked.context is None else min(asked.context, longest)
    prediction = assessor.predict(_settings(assessor, replace(asked, context=context)))
    verdict = assessor.verdict(prediction)
    return FitCell(
        model=assessor.model.name,
        recipe=assessor.recipe.name,
        verdict=verdict,
        reason=_of_steps(assessor.steps(prediction)) if verdict in _OF_STEPS else "",
        total_bytes=prediction.memory.total,
        usable_bytes=assessor.device.usable,
        max_context=prediction.max_context,
        roofline_tokens_per_s=assessor.roofline(prediction, 0),
    )


def _settings(assessor: Assessor, asked: Asked) -> Settings:
    """The recipe's settings with the options that were given. Raises ConfigError."""
    settings = assessor.default_settings()
    if assessor.is_quantized:
        _refuse_contradictions(assessor, settings, asked)
    if asked.bits is not None:
        settings = replace(settings, bits=asked.bits)
        if asked.bits == UNQUANTIZED:  # as an export without quantization has it
            settings = replace(settings, lm_head_bits=UNQUANTIZED)
    if asked.group_size is not None:
        settings = replace(settings, group_size=asked.group_size)
    elif not assessor.is_quantized:
        settings = replace(settings, group_size=assessor.group_choice(settings.bits).size)
    if asked.lm_head_bits is not None:
        settings = replace(settings, lm_head_bits=asked.lm_head_bits)
    if settings.lm_head_bits not in (4, 8, UNQUANTIZED):
        raise ConfigError(f"--lm-head-bits {settings.lm_head_bits}: allowed values: 4, 8, 16")
    if asked.context is not None and asked.context < 1:
        raise ConfigError(f"--context {asked.context}: must be a positive number of tokens")
    return replace(settings, kv_dtype=asked.kv_dtype, context=assessor.clip(asked.context))


def _refuse_contradictions(assessor: Assessor, settings: Settings, asked: Asked) -> None:
    pairs = (("--bits", asked.bits, settings.bits),
             ("--group-size", asked.group_size, settings.group_size))  # fmt: skip
    for option, wanted, stored in pairs:
        if wanted is not None and wanted != stored:
            raise ConfigError(
                f"{option} {wanted} contradicts {assessor.model.name}, which is quantized with "
                f"{stored}; leave it out, or name the model that it was made from"
            )


def _settings_part(recipe: Recipe, prediction: Prediction) -> SettingsPart:
    settings, main, sizes = prediction.settings, prediction.formats.main, prediction.sizes
    dtype = recipe.runtime.activation_dtype
    return SettingsPart(
        runtime=recipe.runtime.backend,
        bits=UNQUANTIZED if main is None else main.bits,
        group_size=None if main is None else main.group_size,
        scheme=None if main is None else main.scheme,
        lm_head_bits=prediction.formats.lm_head_bits,
        activation_dtype=dtype,
        kv_dtype=settings.kv_dtype,
        kv_cache_dtype=settings.kv_dtype if settings.kv_dtype == "int8" else dtype,
        context=settings.context,
        prefill_chunk=sizes.prefill_chunk,
    )


def _device_part(recipe: Recipe, device: DeviceFigures) -> DevicePart:
    return DevicePart(
        recipe=recipe.name,
        description=recipe.description,
        memory_bytes=device.memory,
        memory_source=device.memory_source,
        system_reserved_bytes=device.system_reserved,
        usable_bytes=device.usable,
        unified_memory=recipe.device.unified_memory,
        bandwidth_bytes_per_s=device.bandwidth,
        bandwidth_source=device.bandwidth_source,
    )


# Verdicts that a step decides, not the memory of a run.
_OF_STEPS = ("refused", "with_swap")


def _of_steps(steps: Iterable[StepPart]) -> str:
    """The step that refuses, and its needs; else the swap."""
    refusals = [f"{step.step}: {step.words}" for step in steps if not step.takes_it]
    needs = [f"{step.step}: {step.words}" for step in steps if step.swap_bytes]
    return "; ".join(refusals or needs)


def _reason(
    verdict: Verdict, prediction: Prediction, device: DeviceFigures, steps: Iterable[StepPart]
) -> str:
    if verdict == "refused":
        return _of_steps(steps)
    if verdict == "with_swap":
        return f"{_of_memory(verdict, prediction, device)}; {_of_steps(steps)}"
    return _of_memory(verdict, prediction, device)


def _of_memory(verdict: Verdict, prediction: Prediction, device: DeviceFigures) -> str:
    total, usable = size_text(prediction.memory.total), size_text(device.usable)
    context, most = prediction.settings.context, prediction.max_context
    needs = f"needs {total} with {context:,} tokens, {usable} are usable"
    if verdict == "does_not_fit" and most:
        return f"{needs}; only {most:,} tokens would fit"
    if verdict == "does_not_fit":
        weights = size_text(prediction.memory.weights)
        return f"{needs}; the weights alone take {weights}"
    if most < context:
        return f"{needs}; it loads with a context of up to {most:,} tokens"
    if verdict == "tight":
        return f"{needs}: {size_text(device.usable - prediction.memory.total)} are left"
    return needs


def _roofline(assessor: Assessor, prediction: Prediction) -> RooflinePart | None:
    context = prediction.context_that_fits or prediction.settings.context
    empty, full = assessor.roofline(prediction, 0), assessor.roofline(prediction, context)
    if empty is None or full is None:
        return None
    return RooflinePart(empty=empty, full=full, context=context)


def _power_modes(recipe: Recipe, prediction: Prediction) -> tuple[PowerModePart, ...]:
    """Power modes whose memory is slower than the device's fastest."""
    fastest = recipe.device.memory_bandwidth
    return tuple(
        PowerModePart(
            name=mode.name,
            default=mode.default,
            bandwidth_bytes_per_s=mode.memory_bandwidth,
            roofline_empty=mode.memory_bandwidth / prediction.sizes.bytes_per_token,
        )
        for mode in recipe.device.power_modes
        if fastest is not None and mode.memory_bandwidth < fastest
    )


def _notes(assessor: Assessor, prediction: Prediction, asked_groups: bool) -> list[str]:
    """Cautions for a reader who takes the figures for the whole truth. asked_groups: true where a
    group size was asked for."""
    recipe, settings = assessor.recipe, prediction.settings
    dtype = recipe.runtime.activation_dtype
    notes = []
    if assessor.device.in_use is not None:
        notes.append(
            f"of this machine's memory {size_text(assessor.device.in_use)} are in use by other "
            "programs and the system now; what is closed can be had"
        )
    notes += assessor.model.decoder.notes
    if dtype == "float32" and settings.kv_dtype != "int8":
        notes.append("the KV cache is float32, as the activations of this recipe are")
    if settings.bits == UNQUANTIZED and dtype == "float32":
        notes.append("unquantized weights are float32, as the activations of this recipe are")
    left = stored_coverage(assessor.model.decoder, prediction.formats)
    note = None if assessor.is_quantized else assessor.group_choice(settings.bits).note
    if note is not None and settings.bits != UNQUANTIZED and not asked_groups:
        notes.append(note)
    if left.dense_linears and settings.bits != UNQUANTIZED:
        groups = prediction.formats.main.group_size if prediction.formats.main else 0
        notes.append(
            f"{left.dense_linears} of {left.linears} linears, "
            f"{left.dense_weights / left.weights:.1%} of the blocks' weights, stay unquantized: "
            f"groups of {groups} do not fit them, or the checkpoint has them so"
        )
    if recipe.runtime.record.memory.note is not None:
        notes.append(recipe.runtime.record.memory.note)
    if assessor.model.decoder.architecture.vision is not None:
        notes.append("of a vision-language model the language model alone is counted")
    return notes
