"""Sizes that a model's bundle would have in its manifest, from config.json and a recipe alone.

The program says which weights there are, and the storage of the runtime what becomes of them: the
ones that a lowering writes, without their values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from awq_edge.model.archs import Decoder
from awq_edge.program.build import build_program
from awq_edge.program.formats import Formats
from awq_edge.program.sources import PlannedSources
from awq_edge.program.storage import FormOf, Storage
from awq_edge.program.stored import StoredLinear
from awq_edge.program.weights import Weight, mean_bytes_per_token, part_bytes
from awq_edge.recipe.recipes import Recipe
from awq_edge.recipe.runtimes import load


@dataclass(frozen=True)
class BundleSizes:
    """The sizes of a bundle for one context, as `BundleManifest` has them; and `with_context`."""

    runtime: str
    context: int
    prefill_chunk: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    experts_per_token: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    activation_dtype: str
    accuracy_level: int | None
    scale_groups: int
    arena_bytes: dict[str, int]
    part_bytes: dict[str, int]
    bytes_per_token: int


class Planner:
    """Sizes of the bundles of one model for one recipe, by context."""

    def __init__(self, decoder: Decoder, formats: Formats, recipe: Recipe) -> None:
        layers = formats.layer_counts(decoder)
        self._program = program = build_program(decoder, formats, tuple(layers))
        form: FormOf = load(recipe.runtime.record.storage)
        self._storage = storage = Storage(form(recipe, program), PlannedSources())
        self._totals = totals = _Totals()
        totals.add(storage.inputs(program.embedding))
        for count, block in zip(layers.values(), program.blocks, strict=True):
            totals.add(storage.block(block), count)
        totals.add(storage.outputs(program.output))
        arenas = recipe.runtime.record.memory.arenas
        self._chunk = recipe.export.prefill_chunk
        self._sizes = BundleSizes(
            runtime=recipe.runtime.backend,
            context=0,
            prefill_chunk=0,
            vocab_size=decoder.vocab_size,
            hidden_size=decoder.hidden_size,
            intermediate_size=decoder.widest_intermediate_size,
            experts_per_token=decoder.moe.experts_per_token if decoder.moe else 0,
            num_layers=decoder.num_layers,
            num_heads=decoder.num_heads,
            num_kv_heads=decoder.num_kv_heads,
            head_size=decoder.head_size,
            activation_dtype=recipe.runtime.activation_dtype,
            accuracy_level=recipe.runtime.accuracy_level,
            scale_groups=totals.scale_groups,
            arena_bytes={} if arenas is None else load(arenas)(program, storage),
            part_bytes=dict(totals.parts),
            bytes_per_token=0,
        )

    def sizes(self, context: int) -> BundleSizes:
        """The sizes of a bundle that is exported for `context` tokens."""
        tables = [
            table
            for name, rope in self._program.rotations
            for table in self._storage.rotation(name, rope, context)
        ]
        parts = Counter(self._sizes.part_bytes)
        parts.update(part_bytes(tables))
        per_token = self._totals.per_token + sum(map(mean_bytes_per_token, tables))
        return replace(
            self._sizes,
            context=context,
            prefill_chunk=min(self._chunk, context),
            part_bytes=dict(parts),
            bytes_per_token=round(per_token),
        )


class _Totals:
    """Sums over weights. parts: bytes by part. per_token: bytes that decoding one token reads."""

    def __init__(self) -> None:
        self.parts = part_bytes(())
        self.per_token = 0.0
        self.scale_groups = 0

    def add(self, items: Iterable[StoredLinear | Weight], times: int = 1) -> None:
        """Add weights that are there `times` times."""
        for item in items:
            weights = [item] if isinstance(item, Weight) else [*item.tensors.values()]
            if isinstance(item, StoredLinear):
                self.scale_groups += item.scale_groups * times
            for weight in weights:
                self.parts[weight.part] += weight.nbytes * times
                self.per_token += mean_bytes_per_token(weight) * times
