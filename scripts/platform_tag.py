"""The wheel platform tag that is true of a shared library.

    python scripts/platform_tag.py LIBRARY      manylinux_2_34_x86_64

PEP 600: `manylinux_X_Y` promises to run where glibc is X.Y or newer and the usual libraries are.
A library that needs nothing but glibc keeps that promise for the newest symbol version it asks
for. One that needs more has the tag `linux_...`: it is for machines like the one that built it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# The parts of glibc (PEP 600 allows more, whose versions would have to be compared too).
_GLIBC = re.compile(r"^(lib(c|m|dl|rt|pthread)\.so\.\d+|ld-linux[\w-]*\.so\.\d+)$")
_MACHINE = re.compile(r"Machine:\s+(.+)")
_MACHINES = {"Advanced Micro Devices X86-64": "x86_64", "AArch64": "aarch64"}
_VERSION = re.compile(r"Name: GLIBC_(\d+)\.(\d+)")
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+?)\]")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} LIBRARY")
    print(platform_tag(Path(sys.argv[1])))


def platform_tag(library: Path) -> str:
    """The tag for the processor that it was compiled for. Raises CalledProcessError if it is no ELF
    file."""
    options = ["--wide", "--file-header", "--dynamic", "--version-info"]
    command = ["readelf", *options, str(library)]
    return tag_of(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def tag_of(readelf: str) -> str:
    """The tag by what `readelf --file-header --dynamic --version-info` prints. Raises KeyError for
    another processor than those that wheels are made for."""
    match = _MACHINE.search(readelf)
    machine = _MACHINES[match[1] if match else ""]
    versions = [(int(major), int(minor)) for major, minor in _VERSION.findall(readelf)]
    others = [name for name in _NEEDED.findall(readelf) if not _GLIBC.match(name)]
    if others or not versions:
        return f"linux_{machine}"
    major, minor = max(versions)
    return f"manylinux_{major}_{minor}_{machine}"


if __name__ == "__main__":
    main()
