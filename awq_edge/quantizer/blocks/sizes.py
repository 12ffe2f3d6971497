"""How large what belongs to a block is, from the configuration alone."""

from __future__ import annotations

import math

from awq_edge.model.archs import Decoder
from awq_edge.quantizer.calibration.statistics import plan_samples


def block_bytes(decoder: Decoder, budget: int, element_bytes: int) -> int:
    """Bytes of the largest block's weights and statistics, as they travel to a worker.

    budget: of the statistics, see `plan_samples`. element_bytes: of a weight as it is stored.
    """
    return max(
        element_bytes * block_parameters(decoder, layer) + statistics_bytes(decoder, layer, budget)
        for layer in range(decoder.num_layers)
    )


def block_parameters(decoder: Decoder, layer: int) -> int:
    return sum(math.prod(shape) for shape in decoder.block_shapes(layer).values())


def token_bytes(decoder: Decoder, layer: int, length: int) -> int:
    """About the bytes of activations that a block's forward pass holds for a token, float32.

    At their peak: three in the MLP (of an activation times another), four of the hidden states. And
    the attention scores, twice, where transformers computes them as a matrix. length: tokens of a
    sample.
    """
    values = 3 * max(input_sizes(decoder, layer).values()) + 4 * decoder.hidden_size
    if decoder.architecture.attention_softcap is not None:
        values += 2 * decoder.num_heads * length
    return 4 * values


def input_sizes(decoder: Decoder, layer: int) -> dict[str, int]:
    """The channels of the inputs of a block's linears, by input."""
    features = {linear.name: linear.in_features for linear in decoder.linears(layer)}
    return {name: features[linears[0]] for name, linears in decoder.inputs(layer).items()}


def statistics_bytes(decoder: Decoder, layer: int, budget: int) -> int:
    """Bytes of G, or of the sampled tokens, of all inputs of a block."""
    sizes = input_sizes(decoder, layer)
    plan = plan_samples(sizes, budget)
    return sum(4 * size * (plan[name] or size) for name, size in sizes.items())
