"""A page as tests read it: tables by id, tooltips, text, and everything that points somewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "br", "img", "link", "input", "hr", "source"}


class Page(HTMLParser):
    """A parsed page.

    tables: id -> rows of cell texts. tips: texts of <title> inside charts. ids: every id. targets:
    values that name an id. links: every other value of an attribute that can load something.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.tags: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.tips: dict[str, list[str]] = {}
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.links: list[str] = []
        self.styles: list[str] = []
        self._open: list[str] = []
        self._table: list[list[str]] | None = None
        self._chart = ""
        self.feed(text)
        self.close()
        assert self._open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        for name, value in values.items():
            self.targets += re.findall(r"url\(#([^)]*)\)", value)
            if name in ("href", "src", "srcset", "data", "action", "poster", "xlink:href"):
                (self.targets if value.startswith("#") else self.links).append(value.lstrip("#"))
            elif name.startswith("on"):
                self.links.append(f"{name}={value}")
        if "id" in values:
            self.ids.append(values["id"])
        if "style" in values:
            self.styles.append(values["style"])
        if tag == "svg" and "aria-label" in values:
            self._chart = values["aria-label"]
            self.tips[self._chart] = []
        if tag == "title" and "svg" in self._open:
            self.tips[self._chart].append("")
        if tag == "table":
            self._table = self.tables.setdefault(values["id"], [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th") and self._table is not None:
            self._table[-1].append("")
        elif tag in ("h1", "h2", "summary"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}>"
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside in ("td", "th") and self._table is not None:
            self._table[-1][-1] += data
        elif inside in ("h1", "h2", "summary"):
            self.headings[-1] += data
        elif inside == "title" and "svg" in self._open:
            self.tips[self._chart][-1] += data
