"""Multipliers of a program, folded into numbers that it has anyway.

Both folds are exact but for roundings, and hold for whatever runtime the program is emitted for.
"""

from __future__ import annotations

from dataclasses import replace

from awq_edge.program.program import Block, Norm, Program


def fold_multipliers(program: Program) -> Program:
    """Without residual multipliers and scales of logits, where these can be folded.

    residual: h + r * branch is r * (h / r + branch), and nothing but norms reads h. A norm of h / r
    is that of h with eps / r². So the embedding is divided by r.
    logits: the final norm's weight is multiplied.
    """
    return _fold_logits(_fold_residual(program))


def _fold_residual(program: Program) -> Program:
    sublayers = [each for block in program.blocks for each in block.sublayers]
    scales = {each.residual_scale for each in sublayers}
    final = program.output.norm
    readers = [*(each.norm for each in sublayers), final]
    embedding = program.embedding
    # Learned positions would have to be divided too.
    if len(scales) != 1 or None in readers or embedding.positions is not None:
        return program
    (scale,) = scales
    if scale in (0.0, 1.0):
        return program
    return replace(
        program,
        embedding=replace(embedding, scale=embedding.scale / scale),
        blocks=tuple(_unscaled(block, scale) for block in program.blocks),
        output=replace(program.output, norm=_of_divided(final, scale)),
    )


def _fold_logits(program: Program) -> Program:
    output = program.output
    if output.norm is None or output.scale == 1.0:
        return program
    factor = output.norm.factor * output.scale
    return replace(
        program, output=replace(output, norm=replace(output.norm, factor=factor), scale=1.0)
    )


def _unscaled(block: Block, scale: float) -> Block:
    sublayers = tuple(
        replace(each, residual_scale=1.0, norm=_of_divided(each.norm, scale))
        for each in block.sublayers
    )
    return replace(block, sublayers=sublayers)


def _of_divided(norm: Norm | None, scale: float) -> Norm | None:
    """The norm that gives of x / scale what `norm` gives of x."""
    return None if norm is None else replace(norm, eps=norm.eps / scale**2)
