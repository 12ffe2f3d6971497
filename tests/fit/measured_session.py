"""What a session of a bundle takes beside another one, which has brought libraries and code in.

    python measured_session.py BUNDLE

The cache is filled by single tokens, so that next to nothing of it is activations; mapped weights
are read, so that they count as used. Prints JSON: bytes.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from pathlib import Path

from awq_edge.artifacts.directories import Bundle
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.memory import read_process_memory
from awq_edge.runtime.session import Session, SessionOptions

PAGE = 4096


def filled(bundle: Bundle, context: int) -> Session:
    """A session with a full cache of `context` positions."""
    session = open_session(bundle, SessionOptions(context=context, threads=1))
    session.prefill([1])
    for _ in range(context - 1):
        session.decode(1)
    return session


def read_mapped(file: Path) -> None:
    """Read a byte of every page of a file that this process maps."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file.resolve())):
            begin, end = (int(word, 16) for word in re.split(r"[- ]", line)[:2])
            for page in range(begin, end, PAGE):
                ctypes.string_at(page, 1)


def main() -> None:
    bundle = Bundle.open(Path(sys.argv[1]))
    first = filled(bundle, 8)
    read_mapped(bundle.path / bundle.manifest.weights)
    before = read_process_memory()
    second = filled(bundle, bundle.manifest.context)
    read_mapped(bundle.path / bundle.manifest.weights)
    after = read_process_memory()
    assert before.rss is not None and after.rss is not None
    print(json.dumps({"grown": after.rss - before.rss}))
    second.close()
    first.close()


if __name__ == "__main__":
    main()
