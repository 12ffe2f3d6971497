"""What an export leaves unquantized, and the bits of the output layer."""

from __future__ import annotations

from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.lm_head import LM_HEAD_GROUP_SIZE, rounded_bits


def lm_head_bits(checkpoint: Checkpoint, asked: int) -> int:
    """The bits that lm_head gets where `asked` are asked for (16: unquantized).

    A quantized one stays as it is; groups that do not fit leave it unquantized.
    """
    decoder, lm_head = checkpoint.decoder, checkpoint.decoder.architecture.lm_head
    if checkpoint.is_quantized(lm_head):
        return checkpoint.linear_format(lm_head).bits
    return rounded_bits(decoder.embedding_size, asked)


def unquantized_linears(checkpoint: Checkpoint, lm_head_asked: int) -> dict[str, str]:
    """Linears that stay unquantized though quantization was asked for: full name -> reason."""
    decoder, main = checkpoint.decoder, checkpoint.main_format
    reasons = {}
    if main is not None and checkpoint.layout is not None:
        for layer in range(decoder.num_layers):
            for linear in decoder.linears(layer):
                name = f"{decoder.layer_prefix(layer)}.{linear.name}"
                if not checkpoint.is_quantized(name):
                    reason = checkpoint.layout.obstacle(
                        linear.out_features, linear.in_features, main
                    )
                    reasons[name] = reason or "not quantized in the checkpoint"
    lm_head = decoder.architecture.lm_head
    rounds = not checkpoint.is_quantized(lm_head)
    if rounds and lm_head_bits(checkpoint, lm_head_asked) > lm_head_asked:
        reasons[lm_head] = (
            f"in_features {decoder.embedding_size} is not a multiple of group_size "
            f"{LM_HEAD_GROUP_SIZE}"
        )
    return reasons
