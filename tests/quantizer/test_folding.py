"""Folds are exact for every architecture, as stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from awq_edge.archs import ScaleGroup
from awq_edge.checkpoint import Checkpoint
from awq_edge.quantizer.blocks import BlockRunner, relative_change
from awq_edge.quantizer.folding import fold, realise_scale, row_scale, tie_channels

# float32 rounding of a block: 1e-7 an operation.
EXACT = 1e-5


def wild_scale(size: int, seed: int) -> torch.Tensor:
    """Scales from 1/10 to 10, all different."""
    random = torch.Generator().manual_seed(seed)
    return 10 ** (2 * torch.rand(size, generator=random) - 1)


def test_folding_all_groups_keeps_the_blocks_output(tiny_model: Path) -> None:
    checkpoint = Checkpoint.open(tiny_model)
    decoder = checkpoint.decoder
    runner = BlockRunner(checkpoint, torch.device("cpu"))
    ids = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0))
    hidden = runner.embed(ids, batch=2)
    tensors = runner.load(1)
    folded = dict(tensors)
    for index, group in enumerate(decoder.scale_groups()):
        size = tensors[f"{group.linears[0]}.weight"].shape[1]
        scale = tie_channels(decoder, group)(wild_scale(size, index))
        fold(decoder, group, scale, folded)
        for name in group.linears:
            assert not torch.equal(folded[f"{name}.weight"], tensors[f"{name}.weight"])
    with runner.block(1, tensors) as block:
        before = block.run(hidden)
    with runner.block(1, folded) as block:
        after = block.run(hidden)
    assert relative_change(before - hidden, after - hidden) < EXACT


def test_a_wrong_fold_is_seen(tiny_model: Path) -> None:
    """The check that the test above relies on: one channel of 64 that is not undone."""
    checkpoint = Checkpoint.open(tiny_model)
    runner = BlockRunner(checkpoint, torch.device("cpu"))
    hidden = runner.embed(torch.arange(40)[None], batch=1)
    tensors = runner.load(0)
    group = checkpoint.decoder.scale_groups()[0]
    scale = torch.ones(64)
    scale[9] = 3
    wrong = dict(tensors)
    fold(checkpoint.decoder, group, scale, wrong)
    wrong[f"{group.previous}.weight"] = tensors[f"{group.previous}.weight"]
    with runner.block(0, tensors) as block:
        before = block.run(hidden)
    with runner.block(0, wrong) as block:
        after = block.run(hidden)
    assert relative_change(before - hidden, after - hidden) > 100 * EXACT


def test_query_heads_of_one_key_value_head_share_their_scales(tiny_model: Path) -> None:
    decoder = Checkpoint.open(tiny_model).decoder
    group = next(g for g in decoder.scale_groups() if g.kind == "value_rows")
    tied = tie_channels(decoder, group)(wild_scale(128, 0)).reshape(2, 2, 32)
    torch.testing.assert_close(tied[:, 0], tied[:, 1], rtol=0, atol=0)
    rows = row_scale(decoder, group, tied.reshape(-1))
    torch.testing.assert_close(rows, tied[:, 0].reshape(-1), rtol=0, atol=0)


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])
def test_the_stored_norm_undoes_the_scale_exactly(storage: torch.dtype) -> None:
    """Rounding the folded norm to 16 bits changes s, not the product."""
    norm = (0.1 + torch.rand(64, generator=torch.Generator().manual_seed(0))).to(storage).float()
    norm[3] = 0  # a channel that is switched off
    group = ScaleGroup("mlp_in", "norm", "norm", ("up",))
    realise = realise_scale(group, {"norm.weight": norm}, storage)
    wanted = wild_scale(64, 1)
    scale = realise(wanted)
    stored = (norm / scale).to(storage).float()
    torch.testing.assert_close(stored * scale, norm, rtol=1e-6, atol=0)
    relative = (scale / wanted - 1).abs()
    relative[3] = 0
    assert relative.max() < (2.0**-8 if storage == torch.bfloat16 else 2.0**-10)
    assert scale[3] == 1
