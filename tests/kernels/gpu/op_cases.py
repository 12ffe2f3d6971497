"""Calls of operations on activations, and the one rounding that their results may differ by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awq_edge.kernels.interface import (
    Activation,
    Dtype,
    NormKind,
    NormParameters,
    Sampler,
    SamplingParameters,
)
from awq_edge.kernels.kernels import KernelLibrary

DTYPES = ("float16", "bfloat16")
# Half a unit in the last place of the result, and the float32 roundings on the way to it.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
FLOAT32_ERROR = 16 * 2.0**-24
# An exponential of float32 x has the error of x, up to 16 in size, too.
ACTIVATION_STEPS = 64
# float16 has nothing between its smallest subnormals.
SMALLEST = {"float16": 2.0**-24, "bfloat16": 1e-38}
# What outputs hold before a call: a value that no result has.
POISON = -12288.0
# Sizes of real models, and ones that fit no vector, no warp, and not the registers of a block.
SIZES = (1, 7, 8, 40, 96, 128, 1000, 2560, 4096, 4097, 5120, 8192, 16392, 28672)


class Call:
    """Arguments of the library's calls for one dtype."""

    def __init__(self, library: KernelLibrary, torch: Any, dtype: str) -> None:
        self.library, self.torch, self.name = library, torch, dtype
        self.dtype = getattr(torch, dtype)
        self.code = Dtype[dtype.upper()]

    def random(self, *shape: int, seed: int = 0, scale: float = 1.0) -> Any:
        generator = self.torch.Generator("cuda").manual_seed(seed)
        numbers = self.torch.randn(*shape, generator=generator, device="cuda") * scale
        return numbers.to(self.dtype)

    def poisoned(self, *shape: int) -> Any:
        return self.torch.full(shape, POISON, dtype=self.dtype, device="cuda")

    def run(self, name: str, *arguments: Any) -> None:
        stream = self.torch.cuda.current_stream().cuda_stream
        self.library.call(name, *map(self.address, arguments), stream)

    def normalize(self, x: Any, *, kind: NormKind = NormKind.RMS, **given: Any) -> None:
        """given: other fields of NormParameters; tensors become their addresses."""
        rows, size = x.shape
        fields = {"eps": 1e-5, "residual_scale": 1.0, "x": x, **given}
        addresses = {name: self.address(value) for name, value in fields.items()}
        self.run(
            "awq_edge_normalize",
            NormParameters(kind=kind, dtype=self.code, rows=rows, size=size, **addresses),
        )

    def address(self, value: Any) -> Any:
        return value.data_ptr() if isinstance(value, self.torch.Tensor) else value

    def sampler(self, rows: int, vocab: int) -> Callable[..., Any]:
        """A function (logits, step, **sampling) -> ids, on one workspace.

        sampling: of every row, or one dict a row. counts, bias, mask: tensors of the rows. greedy:
        every row takes the largest, and parameters are not read.
        """
        torch = self.torch
        size = self.library.size("awq_edge_sample_workspace", rows, vocab)
        # All but the counters holds anything.
        workspace = torch.full((size,), 0xAB, dtype=torch.uint8, device="cuda")
        workspace[:65536] = 0

        def sample(
            logits: Any,
            step: int,
            *each: dict[str, Any],
            counts: Any = None,
            bias: Any = None,
            mask: Any = None,
            greedy: bool = False,
            **settings: Any,
        ) -> Any:
            ids = torch.full((rows,), -7, dtype=torch.int64, device="cuda")
            steps = torch.full((rows,), step, dtype=torch.int64, device="cuda")
            parameters = self.sampling(*(each or [settings] * rows))
            sampler = Sampler(
                dtype=self.code,
                rows=rows,
                vocab=vocab,
                greedy=int(greedy),
                logits=logits.data_ptr(),
                sampling=None if greedy and counts is None else parameters.data_ptr(),
                step=steps.data_ptr(),
                counts=self.address(counts),
                bias=self.address(bias),
                mask=self.address(mask),
                ids=ids.data_ptr(),
            )
            self.run("awq_edge_sample", sampler, workspace, size)
            torch.cuda.synchronize()
            assert not workspace[:65536].any()
            return ids

        return sample

    def sampling(self, *each: dict[str, Any]) -> Any:
        """Parameters of each row, on the device."""
        rows = (SamplingParameters * len(each))(
            *(SamplingParameters(**{"top_p": 1.0, "repetition_penalty": 1.0, **e}) for e in each)
        )
        return self.torch.frombuffer(bytearray(rows), dtype=self.torch.uint8).cuda()


def assert_rounded_once(call: Call, actual: Any, exact: Any, steps: int = 16) -> None:
    """actual: activation dtype. exact: float64. steps: float32 roundings on the way to it."""
    error = (actual.double() - exact).abs()
    allowed = exact.abs() * (ROUNDING[call.name] + steps * 2.0**-24) + SMALLEST[call.name]
    assert bool((error <= allowed).all()), float((error / allowed).max())


def exact_activation(torch: Any, x: Any, activation: Activation) -> Any:
    """float64, without cancellation in the tails."""
    x = x.double()
    if activation == Activation.SILU:
        return x / (1 + (-x).exp())
    if activation == Activation.GELU:
        return 0.5 * x * torch.special.erfc(-x / 2**0.5)
    if activation == Activation.GELU_TANH:
        inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
        return x / (1 + (-2 * inner).exp())
    positive = x.clamp(min=0)
    return positive if activation == Activation.RELU else positive**2
