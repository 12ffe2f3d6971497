"""The bytes that a recipe leaves for the linears of a model, and what each takes in each format.

    --fit DEVICE         usable memory, less what `awq-edge fit` counts for all else: KV cache,
                         activations, overhead, embedding, output layer
    --bits-per-weight    so many bits for each weight of the blocks' linears

Bytes are those of the runtime's own storage: codes in its containers, scales, zero points.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from awq_edge.errors import AwqEdgeError, ConfigError
from awq_edge.exporter.checks import check_model, check_recipe
from awq_edge.fit.assess import TIGHT_SHARE, largest_context
from awq_edge.fit.device import DeviceFigures, device_figures
from awq_edge.fit.planner import BundleSizes, Planner
from awq_edge.fit.steps import PlannedModel
from awq_edge.model.archs import Decoder
from awq_edge.model.group_size import GROUP_SIZES
from awq_edge.model.layouts import choose_layout
from awq_edge.model.lm_head import UNQUANTIZED
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.program.build import build_program
from awq_edge.program.formats import Formats, planned_formats
from awq_edge.program.program import Attention, Block, Experts, Mixer
from awq_edge.program.sources import PlannedSources
from awq_edge.program.storage import FormOf, Storage
from awq_edge.program.stored import StoredLinear
from awq_edge.quantizer.budget.offers import Budget, Offer, Unit, groups_of, worthwhile
from awq_edge.recipe.recipes import Recipe, load_recipe
from awq_edge.recipe.runtimes import load
from awq_edge.runtime.memory import packing_bytes, predict_memory
from awq_edge.tensorrt.builder.memory import predict_build
from awq_edge.units import size_text

LAYOUT = "compressed-tensors"  # the one that holds linears of different widths
Count = Callable[[StoredLinear], int]
_BLIND = ("none", "rtn")  # methods that look at no calibration tokens
# What a budget decides.
_DECIDED = {"quantization.bits": "--bits", "quantization.format": "--format"}


def plan_budget(
    model: Path, decoder: Decoder, recipe: Recipe, device: DeviceFigures | None = None
) -> Budget | None:
    """The budget that a recipe asks for; None where it asks for none.

    model: for errors. recipe: with the group size that fits the model. device: of --fit, None for
    what its recipe says. Raises ConfigError for options that contradict a budget, or where the
    fewest bits are too many; and for what the runtime refuses of the model, as an export does.
    """
    quantization = recipe.quantization
    if quantization.fit is None and quantization.bits_per_weight is None:
        return None
    _refuse_contradictions(recipe)
    if quantization.fit is None:
        assert quantization.bits_per_weight is not None
        return _Counter(model, decoder, recipe, recipe).of_bits(quantization.bits_per_weight)
    target = fit_target(recipe)
    figures = device_figures(target, measure=False) if device is None else device
    return _Counter(model, decoder, recipe, target).of_memory(figures)


def fit_target(recipe: Recipe) -> Recipe:
    """The recipe of the device that --fit names, with the options that were asked for."""
    assert recipe.quantization.fit is not None
    return load_recipe(recipe.quantization.fit).overridden(recipe.asked)


def require_checkpoint_budget(recipe: Recipe) -> None:
    """Raise ConfigError for a context that a quantization has no use for."""
    context = recipe.asked.get("export.context")
    if context is not None and recipe.quantization.fit is None:
        raise ConfigError(
            f"--context {context} counts only with --fit DEVICE: a checkpoint has no KV cache; "
            "leave it out, or give it to `awq-edge export`"
        )


def require_bundle_budget(recipe: Recipe) -> None:
    """Raise ConfigError for a bundle for one device that is to fit another, or for a budget that
    contradicts other options."""
    quantization = recipe.quantization
    if quantization.fit is not None and fit_target(recipe).name != recipe.name:
        raise ConfigError(
            f"--fit {quantization.fit} with --recipe {recipe.name}: the bundle would be for "
            f"another device; leave out --recipe, or give --recipe {quantization.fit}"
        )
    if quantization.fit is not None or quantization.bits_per_weight is not None:
        _refuse_contradictions(recipe)


def _refuse_contradictions(recipe: Recipe) -> None:
    quantization = recipe.quantization
    option = f"--bits-per-weight {quantization.bits_per_weight}"
    if quantization.fit is not None:
        if quantization.bits_per_weight is not None:
            raise ConfigError(f"{option} and --fit are two budgets; give one of them")
        option = f"--fit {quantization.fit}"
    for key, other in _DECIDED.items():
        if recipe.asked.get(key, LAYOUT) not in (LAYOUT, "auto"):
            raise ConfigError(
                f"{other} {recipe.asked[key]} contradicts {option}, which chooses the bits of each "
                f"linear and stores them as {LAYOUT}; leave out one of the two"
            )
    if quantization.method in _BLIND:
        raise ConfigError(
            f"--method {quantization.method} contradicts {option}: it looks at no outputs, by "
            "which linears could be compared; leave out one of the two"
        )


class _Counter:
    """Counts the bytes of one model's linears for one target."""

    def __init__(self, model: Path, decoder: Decoder, recipe: Recipe, target: Recipe) -> None:
        """recipe: how the model is quantized. Raises for what the target refuses of the model."""
        self._model = model
        self._decoder = decoder
        self._recipe = recipe.resolved({"quantization.format": LAYOUT})
        self._target = target
        check_recipe(target)
        self._formats = self._executed()

    def of_bits(self, bits: float) -> Budget:
        """The budget of so many bits a weight. Raises ConfigError where no format has so few."""
        units, weights, fixed = self._units(_bytes_in_file)
        room = int(bits * weights / 8) - fixed
        smallest = sum(unit.offers[0].nbytes for unit in units)
        if smallest > room:
            fewest = 8 * (smallest + fixed) / weights
            raise ConfigError(
                f"--bits-per-weight {bits:g}: {self._model} takes {fewest:.3f} bits a weight in "
                f"the fewest that runtime {self._target.runtime.backend} stores, scales and zero "
                f"points included; give {math.ceil(100 * fewest) / 100:g} or more"
            )
        words = f"{bits:g} bits a weight, scales and zero points included"
        return self._budget(units, room, weights, fixed, words)

    def of_memory(self, device: DeviceFigures) -> Budget:
        """The budget of a device's memory. Raises ConfigError where the fewest bits do not fit."""
        units, weights, fixed = self._units(self._bytes_in_memory)
        smallest = sum(unit.offers[0].nbytes for unit in units)
        planner = Planner(self._decoder, self._smallest_formats(units), self._target)
        tokens = min(self._target.export.context, self._decoder.max_positions)
        wanted = int(device.usable * (1 - TIGHT_SHARE))
        least = predict_memory(planner.sizes(tokens), tokens).total
        if least > wanted:
            longest = largest_context(
                lambda context: predict_memory(planner.sizes(context), context).total,
                wanted,
                tokens,
            )
            advice = (
                f"at most {longest:,} tokens do: --context {longest}"
                if longest
                else ("take a smaller model or a larger device")
            )
            raise ConfigError(
                f"--fit {self._target.name}: {self._model} needs {size_text(least)} with "
                f"{tokens:,} tokens in the fewest bits that runtime "
                f"{self._target.runtime.backend} stores, {size_text(wanted)} are usable; {advice}"
            )
        room = smallest + min(wanted - least, self._buildable(planner.sizes(tokens), device))
        words = (
            f"{self._target.name} with {tokens:,} tokens: {size_text(wanted)}, "
            f"{1 - TIGHT_SHARE:.0%} of its usable memory"
        )
        return self._budget(units, room, weights, fixed, words)

    def _budget(
        self, units: Sequence[Unit], room: int, weights: int, fixed: int, words: str
    ) -> Budget:
        target = self._target.model_dump_json(include={"device", "runtime", "export"})
        runtime = self._target.runtime.backend
        return Budget(tuple(units), room, runtime, words, weights, fixed, target)

    def _buildable(self, sizes: BundleSizes, device: DeviceFigures) -> int:
        """Bytes that the weights may grow by until an engine cannot be built on the device."""
        engine, weights = self._target.runtime.record.engine, sum(sizes.part_bytes.values())
        if engine is None:
            return device.usable
        workspace = self._target.runtime.workspace_bytes
        most = largest_context(
            lambda nbytes: predict_build(nbytes, engine, workspace).device,
            device.usable,
            device.usable,
        )
        return max(0, most - weights)

    def _executed(self) -> dict[NumberFormat, Formats]:
        """The number formats that the target's runtime executes, by its own checks."""
        quantization = self._recipe.quantization
        refusals: list[AwqEdgeError] = []
        sizes: Sequence[int] = GROUP_SIZES
        if "quantization.group_size" in self._recipe.asked:
            sizes = (quantization.group_size,)
        executed = {}
        for bits, size in itertools.product(choose_layout(LAYOUT, 4).bits, sizes):
            values = {"quantization.bits": bits, "quantization.group_size": size}
            planned = self._recipe.resolved(values).quantization
            try:
                formats = planned_formats(self._decoder, planned, quantization.lm_head_bits)
                check_model(PlannedModel(self._model, self._decoder, formats), self._target)
            except AwqEdgeError as error:
                refusals.append(error)
            else:
                executed[NumberFormat(bits, size, quantization.scheme)] = formats
        if not executed:
            raise refusals[0]
        return executed

    def _units(self, count: Count) -> tuple[list[Unit], int, int]:
        """The units of the model; weights of all linears; bytes of those that stay in 16 bits.

        count: bytes of stored linears.
        """
        decoder = self._decoder
        kinds = {decoder.has_experts(layer): layer for layer in range(decoder.num_layers)}
        offers: dict[tuple[bool, str], list[Offer]] = {}
        dense: dict[tuple[bool, str], int] = {}
        for number_format, formats in self._formats.items():
            program = build_program(decoder, formats, tuple(kinds.values()))
            form: FormOf = load(self._target.runtime.record.storage)
            storage = Storage(form(self._target, program), PlannedSources())
            for kind, block in zip(kinds, program.blocks, strict=True):
                for group, stored in _stored_groups(storage, block).items():
                    nbytes = sum(map(count, stored))
                    if all(linear.stored for each in stored for linear in each.linears):
                        offer = Offer(number_format, nbytes)
                        offers.setdefault((kind, group), []).append(offer)
                    else:
                        dense[kind, group] = nbytes
        units: list[Unit] = []
        weights = fixed = 0
        for layer in range(decoder.num_layers):
            kind = decoder.has_experts(layer)
            linears = decoder.linears(layer)
            weights += sum(each.out_features * each.in_features for each in linears)
            for group, calls in groups_of(decoder.inputs(layer)).items():
                if (kind, group) in offers:
                    names = tuple(itertools.chain.from_iterable(calls))
                    units.append(Unit(layer, group, names, worthwhile(offers[kind, group])))
                else:
                    fixed += dense[kind, group]
        return units, weights, fixed

    def _bytes_in_memory(self, stored: StoredLinear) -> int:
        """Bytes of a linear in a session: in the bundle, and what is packed beside it."""
        packed = replace(self._no_sizes, scale_groups=stored.scale_groups)
        return _bytes_in_file(stored) + packing_bytes(packed)

    @functools.cached_property
    def _no_sizes(self) -> BundleSizes:
        """Sizes of any bundle of the target, for what follows from `scale_groups` alone."""
        unquantized = planned_formats(self._decoder, None, UNQUANTIZED)
        return Planner(self._decoder, unquantized, self._target).sizes(1)

    def _smallest_formats(self, units: Sequence[Unit]) -> Formats:
        """The formats of the whole model with each unit in its smallest offer."""
        others = {
            f"{self._decoder.layer_prefix(unit.layer)}.{name}": unit.offers[0].number_format
            for unit in units
            for name in unit.linears
        }
        quantization = self._recipe.quantization
        return planned_formats(self._decoder, quantization, quantization.lm_head_bits, others)


def _bytes_in_file(stored: StoredLinear) -> int:
    """Bytes of a linear in a bundle, without its bias, which no format changes."""
    return sum(weight.nbytes for name, weight in stored.tensors.items() if name != "bias")


def _stored_groups(storage: Storage, block: Block) -> dict[str, list[StoredLinear]]:
    """The stored linears of a block, by group (see `groups_of`)."""
    groups: dict[str, list[StoredLinear]] = {}

    def add(name: str, mixer: Mixer) -> None:
        if isinstance(mixer, Experts):
            for expert in mixer.experts:
                add(name, expert)
            return
        if isinstance(mixer, Attention):
            inputs = storage.linears(mixer.qkv)
        else:
            inputs = storage.linears(mixer.inputs, mixer.activation)
        groups.setdefault(f"{name}_in", []).extend(inputs)
        groups.setdefault(f"{name}_out", []).append(storage.linear(mixer.out))

    for sublayer in block.sublayers:
        add("attention" if isinstance(sublayer.mixer, Attention) else "mlp", sublayer.mixer)
    return groups
