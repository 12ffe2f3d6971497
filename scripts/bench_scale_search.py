"""How close the scale search comes to the whole grid, and with how many rows.

    python scripts/bench_scale_search.py [--device cuda] [--seeds 6]

Weights of Student's t with four degrees of freedom; inputs with one per cent of channels ten times
as large, and correlated. For each number of rows that the search looks at: the loss on all rows of
the point that it chose, relative to that of the best point of the grid; the worst of all seeds.
"""

from __future__ import annotations

import argparse

import torch

from awq_edge.model.w4a16 import NumberFormat
from awq_edge.quantizer.calibration.statistics import InputStatistics
from awq_edge.quantizer.search import scales
from awq_edge.quantizer.search.rounding import fake_quantize
from awq_edge.quantizer.search.scales import GRID, Member, search_scales

FORMAT = NumberFormat(4, 128, "asymmetric")
TOKENS = 20_000
# in_features, out_features of the linears that read the input: TinyLlama's.
SHAPES = ((5632, (2048,)), (2048, (2048, 256, 256)), (2048, (5632, 5632)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print("| input, linears | " + " | ".join(f"{rows} rows" for rows in arguments.rows) + " |")
    print("| --- |" + " --- |" * len(arguments.rows))
    for in_features, outs in SHAPES:
        worst = dict.fromkeys(arguments.rows, 0.0)
        for seed in range(arguments.seeds):
            members = problem(in_features, outs, device, seed)
            losses = whole_grid(members)
            for rows in arguments.rows:
                scales._SEARCH_ROWS = rows
                choice = search_scales(members, FORMAT, tie=lambda mean: mean, seed=seed)
                loss = losses[choice.exponent, choice.weight_aware] / min(losses.values()) - 1
                worst[rows] = max(worst[rows], loss)
        name = f"{in_features} to {' + '.join(map(str, outs))}"
        print(f"| {name} | " + " | ".join(f"{worst[rows]:.2%}" for rows in arguments.rows) + " |")


def problem(
    in_features: int, outs: tuple[int, ...], device: torch.device, seed: int
) -> list[Member]:
    """A scale group with salient channels."""
    random = torch.Generator(device=device).manual_seed(seed)
    torch.manual_seed(seed)  # what StudentT draws from

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, generator=random)

    size = torch.exp(0.7 * normal(in_features))
    order = torch.randperm(in_features, generator=random, device=device)
    size[order[: in_features // 100]] *= 10
    x = normal(TOKENS, in_features) * size
    x += (normal(TOKENS, 64) @ normal(64, in_features)) * size * 0.1
    inputs = InputStatistics(in_features, device, sample_tokens=None, seed=0)
    inputs.add(x)
    student = torch.distributions.StudentT(torch.tensor(4.0, device=device))
    return [
        Member(student.sample((out, in_features)) * 0.02 * torch.exp(0.3 * normal(out, 1)), inputs)
        for out in outs
    ]


def whole_grid(members: list[Member]) -> dict[tuple[float, bool], float]:
    """The loss of every point on all rows, by exponent and form."""
    mean_x = scales._floor(scales._mean_abs(members))
    weights = [member.weight for member in members]
    mean_w = scales._floor(scales._mean_weight(weights, FORMAT.group_size))
    losses = {}
    for weight_aware in (False, True):
        for point in range(GRID + 1):
            exponent = point / GRID
            scale = mean_x**exponent
            if weight_aware:
                scale = scale / mean_w ** (1 - exponent)
            scale = scale / (scale.max() * scale.min()).sqrt()
            losses[exponent, weight_aware] = sum(
                float(
                    member.inputs.errors(
                        fake_quantize(member.weight * scale, FORMAT) / scale - member.weight
                    ).sum()
                )
                for member in members
            )
    return losses


if __name__ == "__main__":
    main()
