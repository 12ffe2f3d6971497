"""The flags of sampling, the same in run, chat and serve. None: not given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from awq_edge.artifacts.sampling_keys import SamplingKeys

TemperatureOption = Annotated[
    float | None, typer.Option(help="0 takes the likeliest token.", show_default=False)
]
TopKOption = Annotated[
    int | None, typer.Option(help="Draw from the k likeliest; 0: from all.", show_default=False)
]
TopPOption = Annotated[
    float | None,
    typer.Option(help="Draw from the likeliest that sum to p; 1: from all.", show_default=False),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        help="Draw from those at least p times as likely as the likeliest.", show_default=False
    ),
]
RepetitionPenaltyOption = Annotated[
    float | None, typer.Option(help="1 is none.", show_default=False)
]


def sampling_keys(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
) -> SamplingKeys:
    """The flags that were given. Raises ConfigError naming the one that is out of range."""
    from awq_edge.artifacts.sampling_keys import check_sampling

    values = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    return check_sampling(values, "sampling")
