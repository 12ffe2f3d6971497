"""One number out of TensorRT's phases: between 0 and 1, never falling, 1 at the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from awq_edge.tensorrt.builder.progress import PhaseTree

# As TensorRT-RTX 1.7.1 tells a small build; steps of "Building engine" end between the phases.
ROOT = "Building engine"


def test_phases_of_a_build() -> None:
    tree, seen = PhaseTree(), []
    tree.start(ROOT, None, 2)
    for phase, steps in (("Cloning network graph", 26), ("Optimizing graph", 30)):
        tree.start(phase, ROOT, steps)
        for step in range(steps):
            tree.step(phase, step)
            seen.append(tree.fraction)
        tree.finish(phase)
        tree.step(ROOT, 0 if phase.startswith("Cloning") else 1)
        seen.append(tree.fraction)
    tree.finish(ROOT)
    assert seen == sorted(seen)
    assert seen[12] == 0.5 * 13 / 26
    assert seen[26] == 0.5
    assert seen[-1] == tree.fraction == 1.0


def test_unknown_phases_are_no_error() -> None:
    tree = PhaseTree()
    tree.step("never started", 3)
    tree.finish("never started")
    assert tree.fraction <= 1.0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 9)), max_size=60))
def test_any_order_stays_in_range_and_never_falls(events: list[tuple[int, int, int]]) -> None:
    tree, last = PhaseTree(), 0.0
    tree.start("0", None, 5)
    for kind, phase, number in events:
        name = str(phase)
        if kind == 0 and phase:
            tree.start(name, str(number % phase), number)
        elif kind == 1:
            tree.step(name, number)
        elif kind == 2 and phase:
            tree.finish(name)
        assert last <= tree.fraction <= 1.0
        last = tree.fraction
