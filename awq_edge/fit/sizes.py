"""Sizes that a model's bundle would have in its manifest, from config.json and a recipe alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from awq_edge.exporter.checks import is_decomposed
from awq_edge.fit.formats import Formats
from awq_edge.fit.storage import Target
from awq_edge.fit.weights import TensorSize, WeightSizes
from awq_edge.model.archs import Decoder
from awq_edge.model.weight_totals import mean_bytes_per_token, part_bytes
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
    part_bytes: dict[str, int]
    bytes_per_token: int


class Planner:
    """Sizes of the bundles of one model for one recipe, by context."""

    def __init__(self, decoder: Decoder, formats: Formats, recipe: Recipe) -> None:
        target = target_of(recipe, decoder)
        self._weights = WeightSizes(decoder, formats, target)
        fixed = self._weights.without_tables()
        self._fixed_per_token = mean_bytes_per_token(fixed)
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
            scale_groups=sum(tensor.scale_groups for tensor in fixed),
            part_bytes=part_bytes(fixed),
            bytes_per_token=0,
        )

    def sizes(self, context: int) -> BundleSizes:
        """The sizes of a bundle that is exported for `context` tokens."""
        tables: list[TensorSize] = self._weights.tables(context)
        parts = dict(self._sizes.part_bytes)
        parts["tables"] += sum(table.nbytes for table in tables)
        return replace(
            self._sizes,
            context=context,
            prefill_chunk=min(self._chunk, context),
            part_bytes=parts,
            bytes_per_token=round(self._fixed_per_token + mean_bytes_per_token(tables)),
        )


def target_of(recipe: Recipe, decoder: Decoder) -> Target:
    """The storage of weights that a recipe chooses."""
    runtime, dtype = recipe.runtime.record, recipe.runtime.activation_dtype
    sizes, casts_tables = runtime.linear_sizes, runtime.casts_tables
    if runtime.native is not None and recipe.export.linear == "native":
        sizes = runtime.native.linear_sizes
    if runtime.native is not None and recipe.export.attention == "native":
        # Attention of ONNX takes tables in its own type; the plugin, and the primitives that stand
        # for soft caps and in graphs for old versions, take float32.
        casts_tables = decoder.attention_softcap is None and not is_decomposed(recipe)
    return Target(
        linear_sizes=load(sizes),
        activation_dtype=dtype,
        tables_dtype=dtype if casts_tables else "float32",
        accuracy_level=recipe.runtime.accuracy_level,
        casts_embedding=runtime.casts_embedding,
        routes_experts=runtime.routes_experts,
    )
