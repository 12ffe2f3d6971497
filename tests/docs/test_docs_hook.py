"""What scripts/docs_hook.py makes of links and of the navigation."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="needs the [docs] extra")
ROOT = Path(__file__).resolve().parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hook", ROOT / "scripts" / "docs_hook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hook: Any = _script()


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("build.md", "formats.md#engine", "formats.md#engine"),
        ("build.md", "../README.md", "overview.md"),
        ("build.md", "../CONTRIBUTING.md#rules", "contributing.md#rules"),
        ("overview.md", ".", "index.md"),
        ("build.md", "../scripts/demo", "source/scripts/demo"),
        ("build.md", "results/", "results/index.md"),
        ("reference/cli.md", "../build.md", "../build.md"),
        ("reference/cli.md", "../../scripts/demo", "../source/scripts/demo"),
        ("build.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("build.md", "#here", "#here"),
    ],
)
def test_links_lead_to_where_their_files_are_in_the_site(
    page: str, link: str, expected: str
) -> None:
    text = f"See [this]({link}), not `[this]({link})`.\n\n```\n[this]({link})\n```\n"
    file = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    seen = hook.on_page_markdown(text, file, None, None)
    assert seen == text.replace(f"[this]({link}),", f"[this]({expected}),", 1)


def test_links_of_the_top_pages_are_seen_from_docs() -> None:
    assert hook._seen_from_docs("[a](docs/build.md#x) [b](recipes/cpu.toml)") == (
        "[a](build.md#x) [b](../recipes/cpu.toml)"
    )


def test_files_outside_of_docs_are_found() -> None:
    text = "[a](../plugins/include/x.h) [b](formats.md) [c](../README.md) `[d](../e)`"
    assert hook._outside("kernels.md", text) == ["plugins/include/x.h"]


def test_pages_that_are_not_there_are_left_out_of_the_navigation() -> None:
    nav = [{"A": "index.md"}, {"B": ["design.md", {"C": "nothing.md"}]}, {"D": ["no.md"]}]
    config = hook.on_config(SimpleNamespace(nav=nav))
    assert config.nav == [{"A": "index.md"}, {"B": ["design.md"]}]


def test_the_reference_has_every_command() -> None:
    text = hook._commands()
    for heading in ("## `awq-edge export`", "## `awq-edge eval`", "### `awq-edge eval tasks`"):
        assert f"\n{heading}\n" in text
