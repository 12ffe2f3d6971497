"""Folds are exact for every architecture, as stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from awq_edge.model.archs import ScaleGroup, decoder_from_config
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.blocks.folding import fold, realise_scale, row_scale, tie_channels
from awq_edge.quantizer.blocks.runner import BlockRunner, Tensors, relative_change

from .conftest import TINY, build_model, load_block, save_model

# float32 rounding of a block: 1e-7 an operation.
EXACT = 1e-5
CPU = torch.device("cpu")


def wild_scale(size: int, seed: int) -> torch.Tensor:
    """Scales from 1/10 to 10, all different."""
    random = torch.Generator().manual_seed(seed)
    return 10 ** (2 * torch.rand(size, generator=random) - 1)


def copied(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


class Folded:
    """Blocks of a model before and after folds, on a few sequences."""

    def __init__(self, model: Path) -> None:
        self._checkpoint = checkpoint = Checkpoint.open(model)
        self.decoder = checkpoint.decoder
        self._runner = BlockRunner(checkpoint, CPU)
        ids = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0))
        self._hidden = self._runner.embed(ids, batch=2)

    def load(self, layer: int) -> Tensors:
        return load_block(self._checkpoint, layer)

    def groups(self, layer: int) -> list[ScaleGroup]:
        return [g for g in self.decoder.scale_groups(layer) if g.kind != "none"]

    def scale(self, group: ScaleGroup, tensors: Tensors, seed: int = 0) -> torch.Tensor:
        size = tensors[f"{group.linears[0]}.weight"].shape[1]
        return tie_channels(self.decoder, group)(wild_scale(size, seed))

    def change(self, layer: int, before: Tensors, after: Tensors) -> float:
        """Of what the block adds to the residual."""
        outputs = []
        for tensors in (before, after):
            with self._runner.block(layer, tensors) as block:
                outputs.append(block.run(self._hidden, 0) - self._hidden)
        return relative_change(*outputs)


@pytest.fixture(scope="module")
def folded(tiny_model: Path) -> Folded:
    return Folded(tiny_model)


def test_folding_all_groups_keeps_the_blocks_output(folded: Folded) -> None:
    for layer in range(folded.decoder.num_layers):
        before = folded.load(layer)
        after = copied(before)
        for index, group in enumerate(folded.groups(layer)):
            fold(folded.decoder, group, folded.scale(group, before, index), after)
            for name in group.linears:
                assert not torch.equal(after[f"{name}.weight"], before[f"{name}.weight"])
        assert folded.change(layer, before, after) < EXACT


def test_folding_one_group_keeps_the_blocks_output(folded: Folded) -> None:
    """And leaves alone what the group does not name."""
    for layer in range(folded.decoder.num_layers):
        before = folded.load(layer)
        for group in folded.groups(layer):
            after = copied(before)
            fold(folded.decoder, group, folded.scale(group, before), after)
            assert folded.change(layer, before, after) < EXACT, group.name
            touched = {*group.linears, *group.readers, group.previous}
            for name, tensor in after.items():
                is_same = torch.equal(tensor, before[name])
                assert is_same == (name.rpartition(".")[0] not in touched) or name.endswith(".bias")


def test_a_wrong_fold_is_seen(folded: Folded) -> None:
    """The check that the tests above rely on: one channel that is not undone."""
    for layer in range(folded.decoder.num_layers):
        before = folded.load(layer)
        for group in folded.groups(layer):
            if group.name.startswith("mlp_out."):
                continue  # a single expert may have no token among these
            scale = torch.ones(before[f"{group.linears[0]}.weight"].shape[1])
            scale[9] = 3
            after = copied(before)
            fold(folded.decoder, group, tie_channels(folded.decoder, group)(scale), after)
            for part in ("weight", "bias"):
                name = f"{group.previous}.{part}"
                if name in before:
                    after[name] = before[name]
            assert folded.change(layer, before, after) > 100 * EXACT, group.name


def test_a_router_that_is_forgotten_is_seen(tmp_path: Path) -> None:
    folded = Folded(save_model(build_model("mixtral"), tmp_path / "model"))
    before = folded.load(0)
    group = next(g for g in folded.groups(0) if g.readers)
    after = copied(before)
    fold(folded.decoder, group, folded.scale(group, before), after)
    router = f"{group.readers[0]}.weight"
    after[router] = before[router]
    assert folded.change(0, before, after) > 100 * EXACT


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])
def test_folds_are_exact_with_norms_as_they_are_stored(
    tiny_model: Path, folded: Folded, storage: torch.dtype
) -> None:
    """Norms in 16 bits before and after: the scale follows from the rounded quotient. The bias of
    a LayerNorm is not rounded here: one scale cannot make both of them exact."""
    for layer in range(folded.decoder.num_layers):
        before = folded.load(layer)
        for norm in folded.decoder.norms():
            before[f"{norm}.weight"] = before[f"{norm}.weight"].to(storage).float()
        after = copied(before)
        dtypes = dict.fromkeys(before, storage)
        for index, group in enumerate(folded.groups(layer)):
            realise = realise_scale(folded.decoder, group, before, dtypes)
            fold(folded.decoder, group, realise(folded.scale(group, before, index)), after)
            if group.kind == "norm":
                name = f"{group.previous}.weight"
                after[name] = after[name].to(storage).float()
                assert not torch.equal(after[name], before[name])
        assert folded.change(layer, before, after) < EXACT


def test_query_heads_of_one_key_value_head_share_their_scales(folded: Folded) -> None:
    decoder = folded.decoder
    group = next(g for g in decoder.scale_groups(0) if g.kind == "value_rows")
    size = decoder.num_heads * decoder.head_size
    heads = (decoder.num_kv_heads, -1, decoder.head_size)
    tied = tie_channels(decoder, group)(wild_scale(size, 0)).reshape(heads)
    torch.testing.assert_close(tied[:, :1].expand_as(tied), tied, rtol=0, atol=0)
    previous = next(n for n in decoder.linears(0) if n.name == group.previous)
    rows = row_scale(decoder, group, tied.reshape(-1), previous.out_features)
    first, end = group.rows or (0, previous.out_features)
    torch.testing.assert_close(rows[first:end], tied[:, 0].reshape(-1), rtol=0, atol=0)
    assert (rows[:first] == 1).all() and (rows[end:] == 1).all()


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])
def test_the_stored_norm_undoes_the_scale_exactly(model_type: str, storage: torch.dtype) -> None:
    """Rounding the folded norm to 16 bits changes s, not the product."""
    decoder = decoder_from_config({"model_type": model_type, **TINY})
    offset = decoder.norm_offset
    random = torch.Generator().manual_seed(0)
    norm = (0.1 + torch.rand(64, generator=random) - offset).to(storage).float()
    norm[3] = -offset  # a channel that is switched off
    group = ScaleGroup("mlp_in", "norm", "norm", ("up",))
    realise = realise_scale(decoder, group, {"norm.weight": norm}, {"norm.weight": storage})
    wanted = wild_scale(64, 1)
    scale = realise(wanted)
    tensors = {"norm.weight": norm.clone(), "up.weight": torch.ones(8, 64)}
    fold(decoder, group, scale, tensors)
    stored = tensors["norm.weight"].to(storage).float()
    gain = norm + offset
    # An offset loses what lies below one ulp of 1 in float32.
    smallest = 1e-5 if offset else 1e-6
    torch.testing.assert_close((stored + offset) * scale, gain, rtol=smallest, atol=0)
    assert scale[3] == 1
    kept = gain != 0
    relative = (scale / wanted - 1).abs()[kept]
    # Half a step of 16 bits; with an offset that of 1, or more, whatever is left of the gain.
    # Twice that, because what is left may be a few steps.
    quotient = (gain / wanted)[kept]
    step = 2.0**-9 if storage == torch.bfloat16 else 2.0**-11
    step_of = (quotient - offset).abs().clamp(min=offset)
    assert (relative < 2.1 * step * step_of / quotient).all()
