"""Kill commands at random moments: the next run must give the same bytes and leave nothing behind.

    python scripts/random_kills.py --runs 200 --seed 1

Each run starts one of `COMMANDS` in a folder of its own, ends it with a random signal after a
random part of the time that it takes, looks at what is there, and gives the command again. A run
fails when a final name holds half an output, when the second run fails or gives other bytes, or
when anything but the output is left. The exit code is the number of failures, at most 100.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CALIBRATION = ("--samples", "4", "--length", "64")
# What says when and how long: other bytes every time, and hashes of those.
VARYING = ("quantization_report.json", "quantization_report.html", "manifest.json")
SLOWEST = 600  # seconds of one command


@dataclass(frozen=True)
class Command:
    """arguments: of awq-edge, "OUT" for the output. before: what lies there: "nothing", "empty" (a
    folder), "here" (an empty working directory) or "output" (one to be replaced)."""

    name: str
    arguments: tuple[str, ...]
    before: str = "nothing"


COMMANDS = (
    Command("quantize", ("quantize", "demo", "--out", "OUT", *CALIBRATION)),
    Command("export", ("export", "demo", "--out", "OUT", "--method", "rtn")),
    Command("export, awq", ("export", "demo", "--out", "OUT", *CALIBRATION)),
    Command("into a folder", ("export", "demo", "--out", "OUT", "--method", "rtn"), "empty"),
    Command("here", ("quantize", "demo", "--out", ".", "--method", "rtn"), "here"),
    Command(
        "replace", ("export", "demo", "--out", "OUT", "--method", "rtn", "--overwrite"), "output"
    ),
    Command("report", ("fit", "demo", "--json", "OUT.json")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", choices=[each.name for each in COMMANDS])
    arguments = parser.parse_args()
    commands = [each for each in COMMANDS if each.name in (arguments.command or [each.name])]
    draw = random.Random(arguments.seed)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="random-kills-") as folder:
        references = {each.name: Reference.of(each, Path(folder)) for each in commands}
        for index in range(arguments.runs):
            command, number = draw.choice(commands), draw.choice(SIGNALS)
            reference = references[command.name]
            after = draw.uniform(0, 1.05 * reference.seconds)
            problem = one_run(command, reference, number, after, Path(folder) / str(index))
            what = f"{index}: {command.name}, {number.name} after {after:.2f} s"
            print(f"{what}: {problem or 'the same bytes, nothing left'}", flush=True)
            failures += problem is not None
    print(f"{failures} of {arguments.runs} failed")
    sys.exit(min(failures, 100))


@dataclass(frozen=True)
class Reference:
    """What a command gives that nobody ends. content: bytes by name."""

    seconds: float
    content: dict[str, bytes]

    @classmethod
    def of(cls, command: Command, folder: Path) -> Reference:
        place = prepare(command, folder / f"reference of {command.name}")
        start = time.monotonic()
        done = start_command(command, place)
        code = done.wait(SLOWEST)
        seconds = time.monotonic() - start
        if code:
            raise SystemExit(f"{command.name} fails without a signal: {code}")
        return cls(seconds, content_of(place))


def one_run(
    command: Command, reference: Reference, number: signal.Signals, after: float, folder: Path
) -> str | None:
    """What is wrong after a kill and a second run; None where nothing is."""
    place = prepare(command, folder)
    process = start_command(command, place)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    process.wait(SLOWEST)
    half = half_written(place)
    if half is not None:
        return f"half written: {half}"
    was_complete = complete(command, place)
    again = start_command(command, place)
    code = again.wait(SLOWEST)
    if was_complete and command.before != "output":
        if code not in (0, 2):
            return f"the second run ends with {code} where the output is whole"
    elif code:
        return f"the second run ends with {code}"
    found = content_of(place)
    if found.keys() != reference.content.keys():
        return f"left or missing: {sorted(found.keys() ^ reference.content.keys())}"
    differ = [name for name in found if found[name] != reference.content[name]]
    if differ and command.name != "report":
        return f"other bytes: {differ}"
    shutil.rmtree(folder)
    return None


def prepare(command: Command, folder: Path) -> Path:
    place = folder / "work"
    place.mkdir(parents=True)
    if command.before == "empty":
        (place / "out").mkdir()
    elif command.before == "output":
        start_command(COMMANDS[1], place).wait(SLOWEST)
    return place


def start_command(command: Command, place: Path) -> subprocess.Popen[bytes]:
    """The command in `place`, with a folder for temporary files beside it."""
    arguments = [each.replace("OUT", "out") for each in command.arguments]
    temporary = place.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "awq_edge", *arguments],
        cwd=place,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def output(place: Path) -> Path:
    out = place / "out"
    return out if out.exists() or (place / "out.json").exists() else place


def complete(command: Command, place: Path) -> bool:
    folder = output(place)
    names = ("manifest.json", "quantization_report.json", "../out.json")
    return any((folder / name).is_file() for name in names)


def half_written(place: Path) -> str | None:
    """A file under a final name that is not whole. In a folder that stays the same one, only
    manifest and report say that the others are."""
    folder = output(place)
    manifest = folder / "manifest.json"
    if manifest.is_file():
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for path, entry in ((folder / name, entry) for name, entry in files.items()):
            if not path.is_file() or path.stat().st_size != entry["size"]:
                return str(path)
    report = place / "out.json"
    if report.is_file():
        json.loads(report.read_text(encoding="utf-8"))
    return None


def content_of(place: Path) -> dict[str, bytes]:
    """Every file in `place` and in its folder for temporary files, hidden ones too."""
    found = {}
    for root in (place, place.parent / "tmp"):
        for path in sorted(root.rglob("*")):
            name = f"{root.name}/{path.relative_to(root)}"
            varies = path.name in VARYING or not path.is_file()
            found[name] = b"" if varies else path.read_bytes()
    return found


if __name__ == "__main__":
    main()
