"""docs/results.md has the tables of the studies that lie beside it, number for number."""

from __future__ import annotations

from pathlib import Path

from experiments.catalogue import EXPERIMENTS
from experiments.result import StudyReport
from experiments.tables import table_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
FILES = ("study", "study_fixed-s", "study_propagation")


def test_every_table_is_that_of_its_file() -> None:
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    seen = []
    for file in FILES:
        text = (DOCS / "results" / f"{file}.json").read_text(encoding="utf-8")
        for experiment in StudyReport.model_validate_json(text).experiments:
            seen.append(experiment.name)
            assert table_of(experiment).markdown() in page, experiment.name
            plot = f"results/study_{experiment.name}.svg"
            assert f"]({plot})" in page and (DOCS / plot).is_file()
    assert sorted(seen) == sorted(EXPERIMENTS)
