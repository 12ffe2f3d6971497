"""Run the command blocks of README.md and docs/ as a reader would type them.

    python scripts/run_docs.py                    # all pages
    python scripts/run_docs.py docs/serve.md      # one

Each page runs in a folder of its own with a bundle and a checkpoint of the demo model; a model, a
file or a path that the page leaves to its reader is one of these. A command that needs a GPU, a
board, a network or hours is not run, for a reason that stands in `ELSEWHERE`; whatever is not there
is run, and must end with 0. A block marked `text` shows what the block before it prints: each of
its lines must come, in that order, `...` standing for anything. Python blocks run behind the
commands.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SECONDS = 900  # of one command
_SERVER_SECONDS = 120  # for a server to say that it listens

# Commands that need what a machine like CI's has not, and what that is.
ELSEWHERE = (
    ("installs", r"pip install|\bapt\b|python3 -m venv|bin/activate|\bgrep -v"),
    (
        "a board or a laptop",
        r"^sudo |^nvidia-smi|^scp |^docker |^dpkg |^export PATH|^free |import tensorrt",
    ),
    (
        "a GPU",
        r"--device cuda|--runtime cuda|gpu_check|-m gpu\b|bench_decode|bench_kernels",
    ),
    (
        "a CUDA compiler",
        r"build-plugins|build_plugins|build_wheel|hatchling|kernel_resources|AWQ_EDGE_TEST_ARCH",
    ),
    ("QEMU and an aarch64 system", r"check_aarch64"),
    ("TensorRT", r"^awq-edge build "),
    ("a second measurement", r"bench compare"),
    ("another device", r"doctor --recipe jetson"),
    ("code of the reader's own", r"--runtime recomputing|^awq-edge run mine|divergence mine"),
    ("a recipe of the reader's own", r"rtx-5080-laptop-16gb"),
    ("a cluster", r"--ray-address|--executor ray"),
    (
        "files that do not ship",
        r"llava-hf/|org/model|public_domain.txt|held_out.txt|my-texts/|wikitext",
    ),
    (
        "minutes to hours",
        r"^scripts/(demo|test|on_device_check|docs)\b|bench_(cpu|export|quantize|lm_head|quality)"
        r"|random_checkpoint|tinyllama|export checkpoint --recipe rtx|bench demo-bundle"
        r"|bench bundle|load_test_server|measure_reuse|method METHOD",
    ),
)
PAGES_ELSEWHERE = {
    "docs/cuda-backend.md": "a GPU",
    "docs/jetson.md": "a Jetson",
    "docs/rtx-laptop.md": "an RTX laptop",
    "docs/tensorrt-runtime.md": "TensorRT",
}
# Python that is no session of its own, and what runs it.
PYTHON_ELSEWHERE = {
    "docs/add-a-backend.md": "files of a backend; tests/docs/test_docs_run.py does not build one",
    "docs/add-an-architecture.md": "a file of awq_edge/model/archs/, which is there",
    "docs/how-awq-works.md": "tests/docs/test_how_awq_works.py",
    "docs/plugin.md": "needs TensorRT",
}
_PROGRAMS = ("awq-edge ", "python ", "curl ", "echo ", "scripts/", "mkdir ")
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One block of a page: a language, its text, and what the page says that it prints."""

    language: str
    text: str
    shown: str | None = None


class DocsError(Exception):
    """A page does not do what it says."""


def steps_of(page: str) -> list[Step]:
    """The blocks of a page's text, drawings left out."""
    found: list[Step] = []
    for _, language, text in _BLOCK.findall(page):
        if language == "text" and found:
            found[-1] = Step(found[-1].language, found[-1].text, text)
        elif language == "python" or (not language and _is_shell(text)):
            found.append(Step(language, text))
    return found


def commands_of(block: str) -> list[str]:
    """The commands of a block, with their continuation lines, without comments."""
    joined = re.sub(r"\\\n\s*", "", block)
    lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def reason_elsewhere(command: str) -> str | None:
    """Why a command is not run here; None where it is."""
    return next((why for why, pattern in ELSEWHERE if re.search(pattern, command)), None)


def compare(shown: str, printed: str) -> None:
    """Raise DocsError where a line that a page shows is not printed, behind those before it."""
    rest = printed.splitlines()
    for line in filter(None, map(str.strip, shown.splitlines())):
        pattern = ".*".join(map(re.escape, line.split("...")))
        while rest and not re.fullmatch(pattern, rest[0].strip()):
            rest.pop(0)
        if not rest:
            raise DocsError(f"the page shows\n    {line}\nand what came is\n{printed}")
        rest.pop(0)


class PageRun:
    """The commands of one page, in a folder that has the demo model as `bundle`, `checkpoint`."""

    def __init__(self, name: str, folder: Path, artifacts: Path) -> None:
        self.name = name
        self.ran = 0
        self._folder = folder
        self._artifacts = artifacts
        self._python = ""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = str(free.getsockname()[1])
        tools = artifacts / "bin"
        self._environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def run(self, steps: list[Step]) -> None:
        """Raises DocsError for the first command that does not do what the page says."""
        self._fresh()
        with contextlib.ExitStack() as servers:
            for step in steps:
                if step.language == "python":
                    self._run_python(step)
                    continue
                printed = ""
                for command in commands_of(step.text):
                    if reason_elsewhere(command) is None:
                        printed += self._run_command(self._adapted(command), servers)
                if step.shown is not None:
                    compare(step.shown, printed)

    def _fresh(self) -> None:
        for name in ("bundle", "checkpoint"):
            shutil.copytree(self._artifacts / name, self._folder / name, dirs_exist_ok=True)

    def _adapted(self, command: str) -> str:
        """With what a page leaves to its reader: a model, a bundle, a port that is free."""
        for pattern, here in (
            (r"meta-llama/Llama-3\.2-1B|\bMODEL\b", "demo"),
            (r"\bCHECKPOINT_OR_BUNDLE\b|\bBUNDLE\b", "bundle"),
            (r"\bCHECKPOINT\b", "checkpoint"),
            (r"FILE\|-|\bFILE\b", "-"),
            (r"\b8000\b", self._port),
        ):
            command = re.sub(pattern, here, command)
        if re.match(r"awq-edge (quantize|export) ", command):
            command += " --overwrite --samples 16 --length 128"
            if "--calibration" in command or "export checkpoint" in command:
                command = command.removesuffix(" --samples 16 --length 128")
        if command.startswith("awq-edge chat") and "|" not in command:
            command = f"echo Good morning | {command} --max-new-tokens 8"
        if command.startswith("awq-edge bench ") and not re.search(
            r"bench (compare|page)", command
        ):
            command += " --prompt 16 --generated 8"
        if command.startswith("awq-edge run "):
            command += " --max-new-tokens 16"
        return command

    def _run_command(self, command: str, servers: contextlib.ExitStack) -> str:
        if not command.startswith(_PROGRAMS):
            raise DocsError(f"{command!r} is no command that is known here, nor in ELSEWHERE")
        self.ran += 1
        if command.startswith("awq-edge serve"):
            servers.enter_context(self._serving(f"{command} --port {self._port}"))
            return ""
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise DocsError(f"{command}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def _serving(self, command: str) -> Iterator[None]:
        log = self._folder / "server.log"
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self._folder,
                env=self._environment,
                stdout=file,
                stderr=file,
            )
        try:
            end = time.monotonic() + _SERVER_SECONDS
            while " at http://" not in log.read_text(encoding="utf-8"):
                if process.poll() is not None or time.monotonic() > end:
                    raise DocsError(f"{command}\ndoes not serve:\n{log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_SERVER_SECONDS)

    def _run_python(self, step: Step) -> None:
        """A block behind those before it on the page, in one program."""
        if self.name in PYTHON_ELSEWHERE:
            return
        self.ran += 1
        mark = "# here the block begins"
        program = f"{self._python}\nprint({mark!r})\n{step.text}"
        self._python += step.text
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        done = subprocess.run(
            [sys.executable, "-c", program.replace("8000", self._port)],
            cwd=folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise DocsError(f"{step.text}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
        if step.shown is not None:
            compare(step.shown, done.stdout.partition(mark)[2])


def make_artifacts(folder: Path) -> Path:
    """A checkpoint and a bundle of the demo model, and the command `awq-edge` of this checkout."""
    tools = folder / "bin"
    tools.mkdir(parents=True)
    for name, words in (("awq-edge", "-m awq_edge"), ("python", "")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n', encoding="utf-8")
        tool.chmod(0o755)
    awq_edge = [sys.executable, "-m", "awq_edge"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    quick = ["--samples", "16", "--length", "128"]
    for command in (
        ["quantize", "demo", "--out", "checkpoint", *quick],
        ["export", "checkpoint", "--out", "bundle"],
    ):
        subprocess.run(
            [*awq_edge, *command], cwd=folder, env=environment, check=True, capture_output=True
        )
    return folder


def run_page(path: Path, folder: Path, artifacts: Path) -> int:
    """Run a page; how many commands and blocks that were. Raises DocsError."""
    if path.relative_to(ROOT).as_posix() in PAGES_ELSEWHERE:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    page = PageRun(path.relative_to(ROOT).as_posix(), folder, artifacts)
    try:
        page.run(steps_of(path.read_text(encoding="utf-8")))
    except (DocsError, subprocess.TimeoutExpired) as error:
        raise DocsError(f"{page.name}: {error}") from None
    return page.ran


def _is_shell(text: str) -> bool:
    first = next(iter(commands_of(text)), "")
    return first.startswith(_PROGRAMS) or reason_elsewhere(first) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path)
    pages = parser.parse_args().pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    failed = []
    with tempfile.TemporaryDirectory() as work:
        artifacts = make_artifacts(Path(work) / "artifacts")
        for index, page in enumerate(map(Path.resolve, pages)):
            try:
                print(f"{page.name}: {run_page(page, Path(work) / str(index), artifacts)} ran")
            except DocsError as error:
                failed.append(error)
                print(error, file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
