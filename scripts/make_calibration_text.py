"""Make awq_edge/data/calibration.txt, the packaged calibration text, and print its card's table.

    pip download --no-deps --dest DIR Django==5.2.8
    npm pack lodash@4.17.21 --pack-destination DIR
    python scripts/make_calibration_text.py --sources DIR

Parts: English prose and plays (public domain), this project's code and documentation at a fixed
commit, messages of Django in several languages, JavaScript of lodash, and text that was written for
this purpose (scripts/calibration_text/written.txt). Pieces of all stand in an order drawn by a
seed, so that every beginning of the file is broad. Its first and last piece are prose that the demo
model was trained on, which its tests read.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import awq_edge

ROOT = Path(__file__).parent.parent
TEXT = Path(awq_edge.__file__).parent / "data" / "calibration.txt"
WRITTEN = Path(__file__).parent / "calibration_text" / "written.txt"
COMMIT = "577d43c81ed9"  # of this project, whose files are taken
DJANGO, LODASH = "django-5.2.8-py3-none-any.whl", "lodash-4.17.21.tgz"
SHA256 = {
    DJANGO: "37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f",
    LODASH: "6a087ac9e5702a0c9d60fbcd48696012646ec8df1491dea472b150e79fcaf804",
}
LANGUAGES = "ar cs da de el es fa fi fr he hi hu id it ja ko nl pl pt_BR ro ru sv tr uk vi zh_Hans"
# Characters of a piece, of the first and last piece (scripts/cuda_reference.py reads 40,000 of the
# end), and of the parts.
PIECE, BEGIN, END = 1_500, 12_000, 40_000
PROSE, CODE, DOCUMENTS, MESSAGES, JAVASCRIPT = 190_000, 95_000, 45_000, 75_000, 22_000
CODE_FILES = (
    "awq_edge/quantizer/loop.py awq_edge/quantizer/search/gptq.py awq_edge/runtime/sampling.py "
    "awq_edge/runtime/tokenizer.py awq_edge/serve/scheduler.py awq_edge/artifacts/directories.py "
    "awq_edge/html/charts.py awq_edge/recipe/recipes.py awq_edge/process/children.py "
    "plugins/include/awq_edge_kernels.h recipes/_common.toml recipes/jetson-orin-nano-8gb.toml "
    "scripts/bench_cpu.py scripts/build_wheel scripts/test mkdocs.yml pyproject.toml"
).split()
DOCUMENT_FILES = "docs/design.md docs/quantize.md docs/how-awq-works.md docs/formats.md".split()


@dataclass(frozen=True)
class Part:
    """text: of one kind. source and licence: in the card's words."""

    name: str
    text: str
    source: str
    licence: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sources", type=Path, required=True, help="folder of both packages")
    arguments = parser.parse_args()
    prose = committed("awq_edge/data/calibration.txt")
    parts = (
        Part("prose", prose[BEGIN:-END], "Genesis, addresses, plays", "public domain"),
        Part("code", joined(CODE_FILES), "this project", "Apache-2.0"),
        Part("documents", joined(DOCUMENT_FILES), "this project", "Apache-2.0"),
        Part("messages", messages(arguments.sources), "Django 5.2.8, locale/", "BSD-3-Clause"),
        Part("JavaScript", javascript(arguments.sources), "lodash 4.17.21", "MIT"),
    )
    sizes = (PROSE, CODE, DOCUMENTS, MESSAGES, JAVASCRIPT)
    written = WRITTEN.read_text(encoding="utf-8").split("\n%%\n")
    pieces = [*written, *written]
    for part, size in zip(parts, sizes, strict=True):
        chosen = spread(cut(part.text), size)
        print(f"| {part.name} | {sum(map(len, chosen)):,} | {part.source} | {part.licence} |")
        pieces += chosen
    print(f"| written | {2 * sum(map(len, written)):,} | {WRITTEN.name}, twice | Apache-2.0 |")
    order = np.random.default_rng(0).permutation(len(pieces))
    middle = "\n\n".join(pieces[index].strip("\n") for index in order)
    TEXT.write_text(f"{prose[:BEGIN]}\n\n{middle}\n\n{prose[-END:]}", encoding="utf-8")
    data = TEXT.read_bytes()
    print(f"{len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


def committed(name: str) -> str:
    """A file of this project at the commit."""
    command = ["git", "show", f"{COMMIT}:{name}"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode("utf-8")


def joined(names: Sequence[str]) -> str:
    return "\n\n".join(committed(name) for name in names)


def package(folder: Path, name: str) -> Path:
    """A downloaded package. Raises SystemExit where it is another file."""
    path = folder / name
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[name]:
        raise SystemExit(f"{path} is not the file that the text was made of")
    return path


def messages(folder: Path) -> str:
    """Translated messages of Django, language by language."""
    texts = []
    with zipfile.ZipFile(package(folder, DJANGO)) as wheel:
        for language in LANGUAGES.split():
            for place in ("conf", "contrib/admin"):
                po = wheel.read(f"django/{place}/locale/{language}/LC_MESSAGES/django.po")
                texts += translations(po.decode("utf-8"))
            texts.append("")
    return "\n".join(texts)


def translations(po: str) -> list[str]:
    """The msgstr entries of a .po file that are sentences."""
    found = re.findall(r'^msgstr(?:\[0\])? ((?:".*"\n)+)', po, re.MULTILINE)
    texts = ["".join(map(ast.literal_eval, entry.splitlines())) for entry in found[1:]]
    return [text for text in texts if len(text) >= 20]


def javascript(folder: Path) -> str:
    with tarfile.open(package(folder, LODASH)) as archive:
        file = archive.extractfile("package/lodash.js")
        assert file is not None
        return file.read().decode("utf-8")


def cut(text: str) -> list[str]:
    """Pieces of whole lines, of at least PIECE characters."""
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= PIECE:
            pieces.append(piece)
            piece = ""
    return pieces


def spread(pieces: Sequence[str], size: int) -> list[str]:
    """As many pieces as make up so many characters, spread evenly over all."""
    count = min(len(pieces), max(1, round(size / (sum(map(len, pieces)) / len(pieces)))))
    return [pieces[index * len(pieces) // count] for index in range(count)]


if __name__ == "__main__":
    main()
