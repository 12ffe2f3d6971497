"""Text from outside (models, files, requests, templates) on its way to a terminal.

A terminal obeys some characters instead of showing them: they set its title, move the cursor over
lines that are there already, answer into its input, or turn the order of what is read. Here they
are shown as escapes (`\\x1b`, `\\u202e`); letters of every script, emoji and their joiners stay.
"""

from __future__ import annotations

import re

# Control characters (C0 without tab and line feed, DEL, C1), line separators, embeddings, overrides
# and isolates of the writing direction, deprecated format characters, halves of surrogate pairs.
_OBEYED = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ud800-\udfff"
_UNSAFE = re.compile(f"[{_OBEYED}]")
_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # what str.splitlines splits at
_LINE_BREAKS = re.compile(f"[{_BREAKS}]+")


def printable(text: str) -> str:
    """`text` with whatever a terminal would obey shown as an escape; line feeds and tabs stay.

    A carriage return before a line feed is dropped.
    """
    return _UNSAFE.sub(_escaped, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """`printable(text)` in one line: a space for each run of line breaks, none at the ends."""
    lines = _LINE_BREAKS.split(text.strip(_BREAKS))
    joined = lines[0] if len(lines) == 1 else " ".join(line.strip(" \t") for line in lines)
    return printable(joined.replace("\t", " "))


def escaped_json(text: str) -> str:
    """JSON of the same meaning that a terminal may be shown. Such characters occur in its strings
    alone, line feeds and tabs aside, which it may be indented with."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
