"""What real models hold and quantizers stumble over: degenerate groups, outliers, dead channels."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import awq_edge
from awq_edge.errors import ModelError
from awq_edge.quantizer.calibration.statistics import InputStatistics
from awq_edge.quantizer.search.awq import output_error, search_group
from awq_edge.quantizer.search.gptq import gptq_round, inverse_factor
from awq_edge.quantizer.search.rounding import NumberFormat, ScaleOverflow, round_to_nearest
from awq_edge.quantizer.search.scales import Member

from .conftest import build_model, save_model

CPU = torch.device("cpu")
GROUP, CHANNELS = 32, 96
# What a group of a row may hold, of standard normal values.
KINDS = {
    "normal": lambda group: group,
    "one-sided": lambda group: group.abs(),
    "negative": lambda group: -group.abs(),
    "zero": lambda group: torch.zeros_like(group),
    "constant": lambda group: torch.full_like(group, 0.37),
    "outlier": lambda group: torch.cat([group[:-1], torch.tensor([1e4])]),
    "tiny": lambda group: group * 1e-7,
}
formats = st.builds(
    NumberFormat,
    st.sampled_from([2, 3, 4, 8]),
    st.just(GROUP),
    st.sampled_from(["asymmetric", "symmetric"]),
)
# A row is a kind for each of its groups.
rows = st.lists(
    st.lists(
        st.sampled_from(sorted(KINDS)), min_size=CHANNELS // GROUP, max_size=CHANNELS // GROUP
    ),
    min_size=1,
    max_size=6,
)


def weight_of(kinds: list[list[str]], random: torch.Generator) -> torch.Tensor:
    return torch.stack(
        [
            torch.cat([KINDS[kind](torch.randn(GROUP, generator=random)) for kind in row])
            for row in kinds
        ]
    )


def inputs_of(outlier: float, dtype: torch.dtype, random: torch.Generator) -> InputStatistics:
    """Inputs with a silent channel, a constant one, and one that is `outlier` times the others."""
    x = torch.randn(200, CHANNELS, generator=random)
    x[:, 3] = 0
    x[:, 40] = 1
    x[:, 77] *= outlier
    statistics = InputStatistics(CHANNELS, CPU, sample_tokens=None, seed=0)
    statistics.add(x.to(dtype))
    return statistics


@settings(max_examples=60, deadline=None)
@given(
    kinds=rows,
    number_format=formats,
    outlier=st.sampled_from([1.0, 30.0, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_the_choice_is_finite_and_never_worse_than_rounding(
    kinds: list[list[str]],
    number_format: NumberFormat,
    outlier: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """On the group's own objective, with its scales and clips, then with GPTQ's codes behind."""
    random = torch.Generator().manual_seed(seed)
    weight = weight_of(kinds, random)
    inputs = inputs_of(outlier, dtype, random)
    choice = search_group(
        {"linear": Member(weight, inputs)},
        number_format,
        tie=lambda mean: mean,
        realise=lambda scale: scale,
        seed=0,
    )
    clip = choice.clips.get("linear")
    own = output_error(weight, choice.scale, clip, inputs, number_format)
    rtn = output_error(weight, None, None, inputs, number_format)
    assert np.isfinite(own)
    assert own <= rtn
    if choice.scale is not None:
        assert torch.isfinite(choice.scale).all() and (choice.scale > 0).all()
    scaled = weight if choice.scale is None else weight * choice.scale
    gram = inputs.gram
    assert gram is not None
    if choice.scale is not None:
        gram = gram / torch.outer(choice.scale, choice.scale)
    candidates = [round_to_nearest(scaled, number_format, clip)]
    with contextlib.suppress(ScaleOverflow):  # the driver keeps the nearest codes then
        candidates.append(gptq_round(scaled, inverse_factor(gram), number_format, clip))
    for rounded in candidates:
        assert torch.isfinite(rounded.scales).all() and (rounded.scales > 0).all()
        assert int(rounded.codes.max()) < 2**number_format.bits
        assert torch.isfinite(rounded.dequantize()).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_groups_that_have_an_exact_form_are_exact(bits: int, scheme: str) -> None:
    """All-zero groups come back as zeros; a constant is a code away from its zero point."""
    number_format = NumberFormat(bits, GROUP, scheme)  # type: ignore[arg-type]
    zero = round_to_nearest(torch.zeros(2, GROUP), number_format)
    assert (zero.dequantize() == 0).all()
    for value in (0.5, -0.5):
        constant = round_to_nearest(torch.full((2, GROUP), value), number_format)
        # The scale is rounded to float16: eleven bits.
        torch.testing.assert_close(
            constant.dequantize(), torch.full((2, GROUP), value), rtol=2**-10, atol=0
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outliers_of_16_bit_inputs_stay_finite_in_the_statistics(dtype: torch.dtype) -> None:
    """Squares of 1e4 do not fit float16: everything is accumulated in float32."""
    x = torch.full((1000, 64), 1e4).to(dtype)
    statistics = InputStatistics(64, CPU, sample_tokens=None, seed=0)
    statistics.add(x)
    assert statistics.is_finite() and statistics.gram is not None
    expected = float(x[0, 0]) ** 2 * 1000
    torch.testing.assert_close(statistics.gram, torch.full((64, 64), expected), rtol=1e-5, atol=0)


def test_activations_that_overflow_stop_with_the_layers_name(
    calibration_text: Path, tmp_path: Path
) -> None:
    """A norm's gain that is finite and far too large: G of its outputs and the attention scores are
    inf."""
    model = save_model(build_model("llama"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"] *= 1e31
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"input of 'attention_\w+' in block 0 is not finite"):
        awq_edge.quantize(
            model,
            tmp_path / "out",
            awq_edge.load_recipe(group_size=32, samples=4, length=32),
            calibration=calibration_text,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
