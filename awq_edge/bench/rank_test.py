"""The Mann-Whitney U test, exact, with ties.

Mann and Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger than
the Other", Ann. Math. Statist. 18 (1947). With ties the distribution is that of the rank sum over
all ways to divide the pooled values, each with its mid-rank (Lehmann, Nonparametrics, 1975, 1.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def rank_sum_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided p-value of "both come from one distribution"; 1.0 when one of them is empty.

    Counts every division of the pooled values, so it costs some len**4 steps: meant for repeats.
    """
    if not first or not second:
        return 1.0
    ranks = _doubled_midranks([*first, *second])
    count = len(first)
    # ways[k][s]: divisions that put k values with doubled ranks of sum s into the first sample.
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in range(count))]
    for rank in ranks:
        for k in range(count, 0, -1):
            for total, number in ways[k - 1].items():
                ways[k][total + rank] = ways[k].get(total + rank, 0) + number
    observed = sum(ranks[:count])
    centre = count * (len(ranks) + 1)  # twice the mean rank sum
    distance = abs(observed - centre)
    extreme = sum(n for total, n in ways[count].items() if abs(total - centre) >= distance)
    return extreme / math.comb(len(ranks), count)


def smallest_p_value(first: int, second: int) -> float:
    """The p-value of two samples of these sizes, 1 or more, that do not overlap; no ties."""
    return min(1.0, 2 / math.comb(first + second, first))


def _doubled_midranks(values: Sequence[float]) -> list[int]:
    """Twice the rank of each value, 1 the smallest; equal ones have the mean of theirs."""
    order = sorted(values)
    below = {value: order.index(value) for value in set(values)}
    return [2 * below[value] + 1 + order.count(value) for value in values]
