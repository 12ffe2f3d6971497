"""Data of an architecture as llama.cpp has it: its name in GGUF, and what its graph computes.

Source: llama.cpp's src/models/<name>.cpp, and what its converter writes for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Whether llama.cpp's graph of an architecture has a thing: never, always, or where a key says so.
Presence = Literal["never", "always", "optional"]


@dataclass(frozen=True)
class LlamaCpp:
    """One architecture of llama.cpp.

    name: general.architecture. rotates_neighbours: channels 2i and 2i + 1 of a head are turned
    together, where Hugging Face's files have i and i + rotary_size / 2: the rows of q and k are put
    in that order. rope_kinds: rotations that it has, of layers without a window.
    full_attention_every: every n-th layer sees all positions and the others a window; None: there
    are no windows. output_bias, mlp_bias: whether these linears may have biases. free_head_size:
    heads may have other sizes than hidden_size / num_heads. own_output: the output layer may be
    another weight than the embedding. attention_softcap, logits_softcap: see `Presence`.
    wide_scale_layers: of a model of so many layers q k^T is multiplied by
    (hidden_size / num_heads) ** -0.5, of others by head_size ** -0.5. writes_multipliers: those of
    embeddings, residuals, attention and logits are keys of the file.
    """

    name: str
    rotates_neighbours: bool = False
    rope_kinds: tuple[str, ...] = ("default", "linear", "yarn")
    full_attention_every: int | None = None
    output_bias: bool = False
    mlp_bias: bool = False
    free_head_size: bool = True
    own_output: bool = True
    attention_softcap: Presence = "never"
    logits_softcap: Presence = "never"
    wide_scale_layers: int | None = None
    writes_multipliers: bool = False


# Llama, Mistral and Mixtral are one architecture there.
LLAMA = LlamaCpp(
    name="llama",
    rotates_neighbours=True,
    rope_kinds=("default", "linear", "llama3", "yarn"),
    output_bias=True,
    mlp_bias=True,
)
