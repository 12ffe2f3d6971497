"""The documentation has the tables of the studies that lie beside it, number for number."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.artifacts.schema import read_manifest
from experiments.catalogue import EXPERIMENTS
from experiments.quantizers.result import Comparison
from experiments.quantizers.table import table_of as compared
from experiments.result import StudyReport
from experiments.tables import table_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = DOCS / "results"
PAGES = {"salience": "how-awq-works.md"}  # of the others: results.md


def test_every_table_is_that_of_its_file() -> None:
    seen = []
    for file in sorted(RESULTS.glob("study*.json")):
        text = file.read_text(encoding="utf-8")
        for experiment in StudyReport.model_validate_json(text).experiments:
            seen.append(experiment.name)
            name = PAGES.get(experiment.name, "results.md")
            page = (DOCS / name).read_text(encoding="utf-8")
            assert table_of(experiment).markdown() in page, experiment.name
            plot = f"results/study_{experiment.name}.svg"
            assert f"]({plot})" in page and (DOCS / plot).is_file()
    assert sorted(seen) == sorted(EXPERIMENTS)


@pytest.mark.parametrize("file", sorted(path.name for path in RESULTS.glob("quantizers_*.json")))
def test_the_comparison_is_that_of_its_file(file: str) -> None:
    comparison = read_manifest(Comparison, RESULTS / file)
    assert compared(comparison).markdown() in (DOCS / "results.md").read_text(encoding="utf-8")
