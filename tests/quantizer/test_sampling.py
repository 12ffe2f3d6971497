"""Sequences drawn from a whole model: the probabilities are the model's, the ends the script's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.blocks.runner import BlockRunner
from awq_edge.quantizer.calibration import sampling
from awq_edge.quantizer.calibration.sampling import NotFiniteError, draw
from awq_edge.quantizer.calibration.scripts import Script

from .conftest import VOCAB
from .vision_models import loaded_whole

CPU = torch.device("cpu")
DOCUMENT = Script((1,), ((1,),), shortest=3)
TALK = Script((1, 40, 41), ((2, 50), (2, 60, 61)), shortest=2, is_conversation=True)
ENDS = (1, 2)
LENGTH = 24


def drawn(path: Path, scripts: list[Script], **options: Any) -> Any:
    settings = {
        "device": CPU,
        "length": LENGTH,
        "seed": 0,
        "batch": 8,
        "vocab_size": VOCAB,
        **options,
    }
    with BlockRunner(Checkpoint.open(path), CPU).whole() as model:
        return draw(model, scripts, ENDS, **settings)


def test_tokens_follow_the_models_probabilities(tiny_model: Path) -> None:
    """Of every architecture: one forward pass of transformers' own model over a finished sequence,
    without a cache, chooses the same tokens by the same random numbers."""
    opening = (1, 40, 41)
    endless = Script(opening, ((1,),), shortest=LENGTH)
    ids = drawn(tiny_model, [endless] * 2)
    model = loaded_whole(tiny_model)
    for number, row in enumerate(ids):
        uniform = np.random.default_rng((0, number)).random(LENGTH)
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(row[None])).logits[0].double()
        logits[:, list(ENDS)] = -torch.inf
        upto = logits.softmax(dim=1).cumsum(dim=1).numpy()
        begin = range(len(opening), LENGTH)
        expected = [int(np.searchsorted(upto[at - 1], uniform[at])) for at in begin]
        assert row.tolist() == [*opening, *expected]


def test_sequences_depend_on_seed_and_number_alone(llava: Path) -> None:
    whole = drawn(llava, [DOCUMENT] * 5)
    assert len({tuple(row) for row in whole.tolist()}) == 5
    np.testing.assert_array_equal(whole, drawn(llava, [DOCUMENT] * 5))
    np.testing.assert_array_equal(whole, drawn(llava, [DOCUMENT] * 5, batch=2))
    np.testing.assert_array_equal(whole[:3], drawn(llava, [DOCUMENT] * 3))
    assert (whole != drawn(llava, [DOCUMENT] * 5, seed=1)).any(axis=1).all()


class _Ends:
    """A model that knows nothing but an end token, and token 9 behind it."""

    class config:
        num_hidden_layers = 0

        @classmethod
        def get_text_config(cls) -> Any:
            return cls

    def __init__(self, value: float = 50.0) -> None:
        self._value = value

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> Any:
        logits = torch.zeros(len(input_ids), 1, VOCAB)
        logits[..., 2] = self._value
        logits[..., 9] = 25.0
        return type("Output", (), {"logits": logits})


def test_ends_are_replaced_by_the_breaks_in_turn() -> None:
    ids = draw(
        _Ends(), [DOCUMENT, TALK], ENDS, device=CPU, length=16, seed=0, batch=2, vocab_size=VOCAB
    )
    assert ids[0].tolist() == [1, 9, 9, 9] * 4
    assert ids[1].tolist() == [1, 40, 41, 9, 9, 2, 50, 9, 9, 2, 60, 61, 9, 9, 2, 50]


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    script = Script((5,), ((5,),), shortest=0)
    with pytest.raises(NotFiniteError, match="logits are not finite"):
        draw(_Ends(value), [script], [0], device=CPU, length=4, seed=0, batch=1, vocab_size=VOCAB)


def test_choices_have_the_shares_of_the_probabilities() -> None:
    """Over several bins of the cumulative sum, with a last bin that is not full."""
    torch.manual_seed(0)
    logits = torch.randn(1, 700) * 3
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    chosen = sampling._choose(logits.expand(20_000, -1), uniform)
    counts = torch.bincount(chosen, minlength=700) / 20_000
    assert float((counts - logits[0].softmax(dim=0)).abs().max()) < 1 / 10_000
    edges = sampling._choose(logits.expand(2, -1), torch.tensor([0.0, 1.0 - 2**-53]))
    assert 0 <= int(edges.min()) and int(edges.max()) < 700
