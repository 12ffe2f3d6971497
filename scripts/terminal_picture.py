"""Make docs/images/run.svg: `awq-edge run` on the demo model as a terminal shows it.

    scripts/terminal_picture [BUNDLE]

The commands run in a pseudo-terminal and what they print is drawn, unchanged. Without BUNDLE the
demo model is exported first. Times are of the machine that this runs on: run it on a quiet one.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "run.svg"
COLUMNS = 92  # as wide as the longest line of figures
RUN = (
    'awq-edge run bundle --prompt "The people of the United States" '
    "--max-new-tokens 64 --temperature 0.8 --seed 1"
)
EXPORT = "awq-edge export demo --recipe cpu --out bundle"
# What a terminal takes as orders and not as text: all but colours.
_ORDERS = re.compile(r"\x1b\[[?0-9;]*[A-Za-ln-z]")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if len(sys.argv) > 1:
            (work / "bundle").symlink_to(Path(sys.argv[1]).resolve())
        else:
            in_terminal(EXPORT, work)
        output = in_terminal(RUN, work)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    console.print(Text(f"$ {RUN}\n", style="bold"))
    console.print(Text.from_ansi(output))
    svg = console.export_svg(title="awq-edge", font_aspect_ratio=0.61)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(without_fonts(svg), encoding="utf-8")
    print(PICTURE)


def in_terminal(command: str, folder: Path) -> str:
    """What a command prints in a pseudo-terminal. Ends this program if the command fails."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    arguments = shlex.split(command)
    program = [sys.executable, "-c", "from awq_edge.cli import main; main()", *arguments[1:]]
    process = subprocess.Popen(program, cwd=folder, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    pieces = []
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other side is closed: Linux's end of file
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    text = b"".join(pieces).decode("utf-8")
    if process.wait() != 0:
        sys.exit(f"error: {command}\n{text}")
    return _ORDERS.sub("", text).replace("\r\n", "\n").replace("\r", "").strip("\n")


def without_fonts(svg: str) -> str:
    """The picture without Rich's fonts, which lie on another server; a reader's own do."""
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace("font-family: Fira Code, monospace", "font-family: monospace")
    if "url(http" in svg or "Fira" in svg:
        sys.exit("error: this version of Rich names its fonts in another way; see without_fonts")
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


if __name__ == "__main__":
    main()
