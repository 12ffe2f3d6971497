"""What the site has beside the pages of docs/ (mkdocs.yml): a hook of mkdocs.

* reference/cli.md: the help of every command, from the command line itself.
* The pages that lie at the top of the repository.
* results/index.md: a list of the raw files.
* Files outside of docs/ that a page links to ("../plugins/include/x.h"), copied to source/. So one
  link serves a reader of the repository and a reader of the site, and where the file is missing
  the build fails.

Pages that the navigation names and that do not exist are left out of it.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# By file: the page. ("README.md" would be another index.)
TOP_PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
COMMANDS_PAGE = "reference/cli.md"
COMMANDS_MARK = "<!-- commands -->"
RAW_FILES_PAGE = "results/index.md"
SOURCE_FOLDER = "source"
# The target of a Markdown link or image, but for addresses and anchors of the same page.
_TARGET = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
# What holds examples, not links.
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out of the navigation what is not there."""
    generated = {*TOP_PAGES.values(), RAW_FILES_PAGE}

    def existing(entry: Any) -> Any:
        if isinstance(entry, list):
            return [kept for kept in map(existing, entry) if kept]
        if isinstance(entry, dict):
            kept = {title: existing(target) for title, target in entry.items()}
            return {title: target for title, target in kept.items() if target}
        return entry if entry in generated or (ROOT / "docs" / entry).is_file() else None

    config.nav = existing(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and the files outside of docs/ that pages link to."""
    for name, uri in TOP_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=_seen_from_docs(text)))
    files.append(File.generated(config, RAW_FILES_PAGE, content=_raw_files(files)))
    for page in list(files.documentation_pages()):
        for target in _outside(page.src_uri, page.content_string):
            uri = f"{SOURCE_FOLDER}/{target}"
            if files.get_file_from_path(uri) is None and (ROOT / target).is_file():
                content = (ROOT / target).read_bytes()
                file = File.generated(
                    config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV
                )
                files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the commands, and turn links to outside of docs/ to where their files are here."""
    if page.file.src_uri == COMMANDS_PAGE:
        markdown = markdown.replace(COMMANDS_MARK, _commands())
    return _with_targets(markdown, lambda target: _in_site(page.file.src_uri, target))


def _with_targets(markdown: str, change: Any) -> str:
    """The page with every relative link's target changed, and code as it was."""

    def link(match: re.Match[str]) -> str:
        return str(change(match[1])) + (match[2] or "")

    pieces, end = [], 0
    for code in _CODE.finditer(markdown):
        pieces += [_TARGET.sub(link, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, _TARGET.sub(link, markdown[end:])])


def _seen_from_docs(text: str) -> str:
    """A page of the repository's top, with its links as they are from inside docs/."""
    return _with_targets(text, lambda target: posixpath.relpath(target, "docs"))


def _outside(page: str, markdown: str) -> list[str]:
    """Paths from the top of the repository, of what lies outside of docs/ and is linked to."""
    found: list[str] = []

    def note(target: str) -> str:
        path = _from_top(page, target)
        if posixpath.commonpath([path, "docs"]) != "docs" and path not in TOP_PAGES:
            found.append(path)
        return target

    _with_targets(markdown, note)
    return found


def _in_site(page: str, target: str) -> str:
    """The target of a link of `page`, from where the page is in the site."""
    path = _from_top(page, target)
    if posixpath.commonpath([path, "docs"]) == "docs":
        inside = posixpath.relpath(path, "docs")
        if (ROOT / path).is_dir():
            inside = posixpath.normpath(f"{inside}/index.md")
    else:
        inside = TOP_PAGES.get(path, f"{SOURCE_FOLDER}/{path}")
    return posixpath.relpath(inside, posixpath.dirname(page) or ".")


def _from_top(page: str, target: str) -> str:
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))


def _raw_files(files: Files) -> str:
    """A list of the files in docs/results, with what each says of itself."""
    lines = ["# Raw files", "", "What [Results](../results.md) is made of.", ""]
    for uri in sorted(file.src_uri for file in files if file.src_uri.startswith("results/")):
        name = posixpath.basename(uri)
        lines.append(f"* [{name}]({name}){_what(ROOT / 'docs' / uri)}")
    return "\n".join(lines) + "\n"


def _what(path: Path) -> str:
    if path.suffix != ".json":
        return ""
    content = json.loads(path.read_text(encoding="utf-8"))
    what = content.get("what") if isinstance(content, dict) else None
    return f": {what}" if what else ""


def _commands() -> str:
    """The help of every command as Markdown, as Typer writes it."""
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from awq_edge.cli import app

    command = get_command(app)
    context = command.make_context("awq-edge", [], resilient_parsing=True)
    text = get_docs_for_click(obj=command, ctx=context, name="awq-edge", indent=1)
    # Without this, the contents would list "awq-edge" and everything below it.
    return str(text.partition("\n")[2]).replace("\n### ", "\n## ").replace("\n#### ", "\n### ")
