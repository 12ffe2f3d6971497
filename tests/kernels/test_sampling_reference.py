"""The sampling reference draws from the right distribution, and has the header's exact integers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.compilers import PLUGINS

from .sampling_reference import WEIGHT_BITS, philox_4x32_10, random_bits, sample, weights
from .test_host_arithmetic import FLAGS

# Chi-square with 19 degrees of freedom exceeds this in one of 10,000 cases; the seed is fixed.
CHI_SQUARE_19 = 50.8

# Prints sampling_weight of every float16 key, for one maximum and temperature.
_PRINT_WEIGHTS = """
#include <cstdio>
#include <cstdlib>
#include "sampling_math.h"
int main(int, char** arguments) {
  const bool bfloat16 = std::atoi(arguments[1]);
  const uint32_t maximum = awq_edge::sort_key(std::strtoul(arguments[2], nullptr, 16), bfloat16);
  const float scale = float(1.4426950408889634 / float(std::atof(arguments[3])));
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint32_t key = awq_edge::sort_key(bits, bfloat16);
    if (key <= maximum && key != 0)
      std::printf("%u %llu\\n", bits, static_cast<unsigned long long>(
                  awq_edge::sampling_weight(key, maximum, scale, bfloat16)));
  }
}
"""


def values_of_bits(bits: np.ndarray, bfloat16: bool) -> np.ndarray:
    """float32 values of 16-bit patterns."""
    if bfloat16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def print_weights(gxx: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "print.cpp").write_text(_PRINT_WEIGHTS)
    command = [gxx, *FLAGS, f"-I{PLUGINS / 'kernels'}", folder / "print.cpp", "-o", folder / "run"]
    subprocess.run(command, check=True)
    return folder / "run"


@pytest.mark.parametrize(
    ("bfloat16", "maximum", "temperature"),
    [(False, 0x4D00, 1.0), (False, 0x4900, 0.3), (False, 0xC500, 2.5), (True, 0x41A1, 0.8)],
)
def test_weights_are_the_header_s_bit_by_bit(
    bfloat16: bool, maximum: int, temperature: float, print_weights: Path
) -> None:
    command = [print_weights, str(int(bfloat16)), f"{maximum:x}", str(temperature)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    bits, expected = np.array([line.split() for line in output.splitlines()], dtype=np.uint64).T
    assert maximum in bits and len(bits) > 10_000
    assert np.array_equal(weights(values_of_bits(bits, bfloat16), temperature), expected)


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
    assert weights(np.array([np.inf, 1.0], np.float32), 1.0).tolist() == [1 << WEIGHT_BITS, 0]
