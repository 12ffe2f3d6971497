"""What a task receives is what was sent, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from awq_edge.quantizer.calibration.statistics import InputStatistics
from awq_edge.quantizer.cluster.shipping import pack, unpack, wire

CPU = torch.device("cpu")
SIZE = 100  # squared: larger than what travels inside the pickle


def there_and_back(value: Any) -> Any:
    packed = pack(value)
    return unpack(packed.blob, [wire(tensor) for tensor in packed.tensors], CPU)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def random(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return values.to(dtype)


@pytest.mark.parametrize(
    "tensor",
    [
        random(),
        random(torch.bfloat16).float(),
        random(torch.float16).float(),
        random(torch.bfloat16),
        random(torch.float64),
        random().T,
        random() > 0,
        (100 * random()).to(torch.int64),
        (100 * random()).to(torch.uint8),
        torch.full((SIZE, SIZE), -0.0),
        torch.full((SIZE, SIZE), float("nan")),
        torch.full((SIZE, SIZE), 2.0**-149),  # the smallest float32
        torch.full((SIZE, SIZE), 2.0**-24),  # the smallest float16
        torch.zeros(0, 3),
        torch.tensor(3.5),
    ],
)
def test_tensors_arrive_bit_for_bit(tensor: torch.Tensor) -> None:
    found = there_and_back({"tensor": tensor})["tensor"]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert bits(found) == bits(tensor)


def test_weights_of_16_bits_travel_in_16_bits() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        name, content = wire(random(dtype).float())
        assert f"torch.{name}" == str(dtype) and content.nbytes == 2 * SIZE * SIZE
    # One value that does not fit, after all that are looked at first.
    weight = random(torch.bfloat16).float()
    weight[-1, -1] = 1 / 3
    name, content = wire(weight)
    assert name == "float32" and content.nbytes == 4 * SIZE * SIZE


def test_a_tensor_that_occurs_twice_travels_once() -> None:
    tensor = random()
    assert len(pack([tensor, {"again": tensor}]).tensors) == 1
    first, second = there_and_back([tensor, {"again": tensor}])
    assert first is second["again"]


@pytest.mark.parametrize("sample_tokens", [None, 50])
def test_statistics_arrive_whole(sample_tokens: int | None) -> None:
    """G is mirrored when it is read, on whatever machine: so is the copy."""
    statistics = InputStatistics(SIZE, CPU, sample_tokens=sample_tokens, seed=0)
    statistics.add(torch.randn(300, SIZE, generator=torch.Generator().manual_seed(1)))
    copy = there_and_back(statistics)
    difference = random()
    assert torch.equal(copy.errors(difference), statistics.errors(difference))
    assert torch.equal(copy.mean_abs, statistics.mean_abs) and copy.tokens == statistics.tokens
    # The sample goes on as the original does.
    more = torch.randn(300, SIZE, generator=torch.Generator().manual_seed(2))
    copy.add(more)
    statistics.add(more)
    assert torch.equal(copy.errors(difference), statistics.errors(difference))
