"""The pages' commands do what the pages show: scripts/run_docs.py on those that are quick."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("docs/serve.md", "docs/chat.md")


@pytest.fixture(scope="module")
def run_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_docs", ROOT / "scripts" / "run_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_docs"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def artifacts(run_docs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="needs the [host] extra")
    made: Path = run_docs.make_artifacts(tmp_path_factory.mktemp("docs") / "artifacts")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("page", QUICK)
def test_a_page_does_what_it_shows(
    run_docs: ModuleType, artifacts: Path, tmp_path: Path, page: str
) -> None:
    pytest.importorskip("openai", reason="needs the [serve] and [dev] extras")
    assert run_docs.run_page(ROOT / page, tmp_path / "page", artifacts) > 2


@pytest.mark.slow
def test_a_page_that_lies_is_noticed(run_docs: ModuleType, artifacts: Path, tmp_path: Path) -> None:
    page = run_docs.PageRun("page", tmp_path / "page", artifacts)
    (tmp_path / "page").mkdir()
    steps = run_docs.steps_of("```\nawq-edge inspect BUNDLE\n```\n\n```text\nbundle of gold\n```\n")
    with pytest.raises(run_docs.DocsError, match="bundle of gold"):
        page.run(steps)
    with pytest.raises(run_docs.DocsError, match="ended with 2"):
        page.run(run_docs.steps_of("```\nawq-edge inspect nowhere\n```\n"))


def test_every_block_of_commands_is_run_or_has_a_reason(run_docs: ModuleType) -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    commands = [
        command
        for page in pages
        if page.relative_to(ROOT).as_posix() not in run_docs.PAGES_ELSEWHERE
        for step in run_docs.steps_of(page.read_text(encoding="utf-8"))
        if step.language != "python"
        for command in run_docs.commands_of(step.text)
    ]
    assert len(commands) > 50
    known = run_docs._PROGRAMS
    for command in commands:
        assert command.startswith(known) or run_docs.reason_elsewhere(command), command


def test_what_a_page_shows_is_compared(run_docs: ModuleType) -> None:
    run_docs.compare("a ... c\nd", "x\na b c\ny\nd\n")
    for shown in ("a c", "d\na ... c", "e"):
        with pytest.raises(run_docs.DocsError):
            run_docs.compare(shown, "a b c\nd")


def test_comments_and_continuations(run_docs: ModuleType) -> None:
    block = "one  # comment\ntwo \\\n    --more\n# nothing\n"
    assert run_docs.commands_of(block) == ["one", "two --more"]
