"""The sampling reference draws from the right distribution, and has the header's exact integers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.compilers import PLUGINS

from .sampling_reference import (
    WEIGHT_BITS,
    Adjustments,
    adjusted,
    philox_4x32_10,
    random_bits,
    sample,
    weights,
)
from .test_host_arithmetic import FLAGS

# Chi-square with 19 degrees of freedom exceeds this in one of 10,000 cases; the seed is fixed.
CHI_SQUARE_19 = 50.8

# Prints sampling_weight of every difference from the largest, for one temperature.
_PRINT_WEIGHTS = """
#include <cstdio>
#include <cstdlib>
#include "sampling_math.h"
int main(int, char** arguments) {
  const float scale = awq_edge::sampling_scale(float(std::atof(arguments[1])));
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint32_t key = awq_edge::sort_key(bits);
    if (key <= awq_edge::kZeroKey && key != 0)
      std::printf("%u %llu\\n", bits, static_cast<unsigned long long>(
                  awq_edge::sampling_weight(key, awq_edge::kZeroKey, scale)));
  }
}
"""
# Prints the bits of adjusted_logit of what stands on each line: logit, count, bias.
_PRINT_ADJUSTED = """
#include <cstdio>
#include "sampling_math.h"
int main() {
  const awq_edge::Penalties penalties = awq_edge::penalties_of(1.3f, 0.7f, 0.2f);
  float logit, bias;
  unsigned count;
  while (std::scanf("%f %u %f", &logit, &count, &bias) == 3)
    std::printf("%u\\n",
                awq_edge::bits_of_float(awq_edge::adjusted_logit(logit, count, bias, penalties)));
}
"""


def compiled(gxx: str, source: str, program: Path) -> Path:
    program.with_suffix(".cpp").write_text(source)
    include = f"-I{PLUGINS / 'kernels'}"
    subprocess.run([gxx, *FLAGS, include, program.with_suffix(".cpp"), "-o", program], check=True)
    return program


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.0, 2.5])
def test_weights_are_the_header_s_bit_by_bit(temperature: float, gxx: str, tmp_path: Path) -> None:
    command = [compiled(gxx, _PRINT_WEIGHTS, tmp_path / "weights"), str(temperature)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    bits, expected = np.array([line.split() for line in output.splitlines()], dtype=np.uint64).T
    assert 0 in bits and len(bits) > 30_000
    found = weights(bits.astype(np.uint16).view(np.float16), temperature)
    assert np.array_equal(found, expected)


def test_adjusted_logits_are_the_header_s_bit_by_bit(gxx: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=20, size=2000).astype(np.float16).astype(np.float32)
    counts = random.choice([0, 1, 2, 3, 7, 200], 2000).astype(np.uint32)
    bias = random.normal(size=2000).astype(np.float32)
    lines = [f"{a:.9g} {b} {c:.9g}" for a, b, c in zip(logits, counts, bias, strict=True)]
    output = subprocess.run(
        [compiled(gxx, _PRINT_ADJUSTED, tmp_path / "adjusted")],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    by = Adjustments(
        counts,
        bias,
        repetition_penalty=1.3,
        presence_penalty=0.7,
        frequency_penalty=0.2,
    )
    expected = np.array(output.split(), dtype=np.uint32)
    assert np.array_equal(adjusted(logits, by).view(np.uint32), expected)


def test_philox_known_answers() -> None:
    """kat_vectors of Random123: philox4x32, 10 rounds."""
    assert philox_4x32_10((0, 0, 0, 0), 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    expected = (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)
    assert philox_4x32_10(pi, 0x299F31D0A4093822) == expected
    assert random_bits(0, 0, 0) == 0xE169C58D6627E8D5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=20).astype(np.float16).astype(np.float32)
    draws = [sample(logits, temperature=temperature, seed=7, step=s).token for s in range(4000)]
    exact = np.exp(logits.astype(np.float64) / temperature)
    expected = 4000 * exact / exact.sum()
    observed = np.bincount(draws, minlength=20)
    assert ((observed - expected) ** 2 / expected).sum() < CHI_SQUARE_19


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    logits = np.random.default_rng(1).normal(size=500).astype(np.float16).astype(np.float32)
    probabilities = np.sort(np.exp(logits.astype(np.float64)))[::-1]
    through = np.cumsum(probabilities / probabilities.sum())
    for top_p in (0.01, 0.3, 0.5, 0.9, 0.99):
        fewest = int(np.argmax(through >= top_p)) + 1
        assert sample(logits, temperature=1.0, top_p=top_p).kept == fewest
    assert sample(logits, temperature=1.0).kept == 500
    assert sample(logits, temperature=1.0, top_p=1e-9).kept == 1
    assert sample(logits, temperature=1.0, top_k=7).kept == 7


def test_ties_take_the_smaller_id_and_nan_is_never_drawn() -> None:
    logits = np.array([1, np.nan, 3, 3, -0.0, 0.0, 3, -np.inf], dtype=np.float32)
    assert sample(logits, temperature=0).token == 2
    assert {sample(logits, temperature=1, top_k=2, step=s).token for s in range(50)} == {2, 3}
    drawn = {sample(logits, temperature=100, step=s).token for s in range(400)}
    assert drawn == {0, 2, 3, 4, 5, 6}
    assert sample(np.full(5, np.nan, np.float32), temperature=0).token == 0
    nothing = np.full(5, np.nan, np.float32)
    assert {sample(nothing, temperature=1, step=s).token for s in range(100)} == {0, 1, 2, 3, 4}
    infinite = np.array([1.0, np.inf, 5.0, np.inf], np.float32)
    assert {sample(infinite, temperature=1, step=s).token for s in range(50)} == {1, 3}
    assert weights(np.array([0, -np.inf], np.float16), 1.0).tolist() == [1 << WEIGHT_BITS, 0]


def test_min_p_keeps_what_is_likely_enough() -> None:
    logits = np.random.default_rng(2).normal(size=500).astype(np.float16).astype(np.float32)
    relative = np.exp(logits.astype(np.float64) - logits.max())
    for min_p in (0.01, 0.1, 0.5, 0.9):
        draw = sample(logits, temperature=1.0, min_p=min_p)
        assert draw.kept == (relative >= min_p).sum()
    assert sample(logits, temperature=1.0, min_p=1.0).kept == 1
    assert sample(logits, temperature=1.0, min_p=0.01, top_k=3).kept == 3
    # It acts on the tempered distribution, as top_p does.
    assert sample(logits, temperature=0.5, min_p=0.1).kept == (relative**2 >= 0.1).sum()


def test_penalties_bias_and_mask() -> None:
    logits = np.array([2.0, 1.0, -1.0, 0.5], np.float32)
    counts = np.array([1, 4, 3, 0])  # in the prompt; drawn twice; both once; never

    def changed(**given: float) -> list[float]:
        return [float(value) for value in adjusted(logits, Adjustments(counts, **given))]

    assert changed() == [2.0, 1.0, -1.0, 0.5]
    assert changed(repetition_penalty=2.0) == [1.0, 0.5, -2.0, 0.5]
    assert changed(presence_penalty=0.25) == [2.0, 0.75, -1.25, 0.5]
    assert changed(frequency_penalty=0.25) == [2.0, 0.5, -1.25, 0.5]
    bias = np.array([0, 0, 9, 0], np.float32)
    assert sample(logits, temperature=0, adjustments=Adjustments(bias=bias)).token == 2
    mask = np.array([False, False, True, True])
    drawn = {
        sample(logits, temperature=5, step=s, adjustments=Adjustments(mask=mask)).token
        for s in range(100)
    }
    assert drawn == {2, 3}
