"""A damaged input and a command on it, in a process that cannot take the tests down with it.

A defect is an exit that is neither 0 nor 2, an error that is not one clean line, a hang, more
memory than a limit, or a file left behind by a command that failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_edge.artifacts.directories import MANIFEST, Bundle, hash_file
from awq_edge.artifacts.schema import read_manifest
from awq_edge.errors import AwqEdgeError
from awq_edge.extras import missing_extra
from awq_edge.runtime import saved_conversation
from awq_edge.runtime.backends.cuda.program import CudaProgram
from awq_edge.tensorrt.engines.lookup import Engine, check
from awq_edge.terminal_text import one_line

from .mutations import copy_tree, mutate

SECONDS = 60.0  # of one command; the longest sound one takes two on a quiet core
MEMORY = 3 << 30  # address space beyond what the process has when it begins
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_LONGEST_ERROR = 1_500

# Called with the damaged folder and an empty one for outputs; a list is a command line.
Action = Callable[[Path, Path], "Sequence[str] | None"]


@dataclass(frozen=True)
class Target:
    """files: patterns of what is damaged. actions: one is drawn a case. rehash: as often as not,
    the manifest's hashes are made to fit the damage."""

    name: str
    files: tuple[str, ...]
    actions: tuple[Action, ...]
    rehash: bool = False

    @property
    def calls_only(self) -> bool:
        """Whether an action is a call, not a command line."""
        return not all(getattr(action, "is_command", False) for action in self.actions)


@dataclass(frozen=True)
class Outcome:
    """problem: None where there is none. text: standard error."""

    case: str
    code: int
    problem: str | None
    text: str
    seconds: float


def _cli(*arguments: str) -> Action:
    def action(folder: Path, out: Path) -> Sequence[str]:
        return [a.replace("DIR", str(folder)).replace("OUT", str(out / "out")) for a in arguments]

    action.is_command = True  # type: ignore[attr-defined]
    return action


def _read_program(folder: Path, out: Path) -> None:
    manifest = Bundle.open(folder, verify=False).manifest
    path = folder / manifest.graph
    program = read_manifest(CudaProgram, path)
    program.check(str(path), manifest)


def _open_engine(folder: Path, out: Path) -> None:
    engine = Engine.open(next((folder / "engines").iterdir()))
    bundle = Bundle.open(folder, verify=False)
    check(engine, bundle, "tensorrt-rtx", "1.7.1.116", "SM89")


def _read_conversation(folder: Path, out: Path) -> None:
    saved_conversation.read(folder / "chat.json")


_INSPECT = _cli("inspect", "DIR")
_FIT = _cli("fit", "DIR", "--recipe", "cpu")
_EXPORT = _cli("export", "DIR", "--recipe", "cpu", "--context", "32", "--out", "OUT",
               "--method", "rtn", "--group-size", "32")  # fmt: skip
_EXPORT_DENSE = _cli(
    "export", "DIR", "--recipe", "cpu", "--method", "none", "--context", "32", "--out", "OUT"
)
_EXPORT_QUANTIZED = _cli("export", "DIR", "--recipe", "cpu", "--context", "32", "--out", "OUT")
_EXPORT_CUDA = _cli("export", "DIR", "--recipe", "cuda", "--context", "32", "--out", "OUT")
_QUANTIZE = _cli("quantize", "DIR", "--recipe", "cpu", "--method", "rtn", "--group-size", "32",
                 "--out", "OUT")  # fmt: skip
_EXPORT_GGUF = _cli("export", "DIR", "--gguf", "OUT")
_GGUF_FILE = (_cli("inspect", "DIR/model.gguf"), _cli("run", "DIR/model.gguf"))
_RUN = _cli("run", "DIR", "--prompt", "Once", "--max-new-tokens", "2")
_CHAT = _cli("run", "DIR", "--prompt", "Once", "--max-new-tokens", "2", "--chat")
_MODEL = ("config.json", "config.json", "generation_config.json", "*token*.json", "*.safetensors")

TARGETS = (
    Target("model", _MODEL, (_INSPECT, _FIT, _EXPORT_DENSE, _EXPORT_DENSE, _QUANTIZE, _EXPORT)),
    Target("experts", ("config.json", "*.safetensors"), (_INSPECT, _FIT, _EXPORT_DENSE)),
    Target("sharded", ("*.index.json", "*.safetensors"), (_INSPECT, _EXPORT_DENSE)),
    Target("awq", _MODEL, (_INSPECT, _FIT, _EXPORT_QUANTIZED, _EXPORT_CUDA, _EXPORT_GGUF)),
    Target("ct", _MODEL, (_INSPECT, _FIT, _EXPORT_QUANTIZED, _EXPORT_CUDA, _EXPORT_GGUF)),
    Target("reported", ("quantization_report.json",), (_INSPECT, _EXPORT_QUANTIZED)),
    Target(
        "bundle",
        ("*.json", "*.json", "model.onnx*", "*.jinja"),
        (_INSPECT, _RUN, _RUN, _CHAT),
        rehash=True,
    ),
    Target("cuda", ("model.json", "manifest.json"), (_INSPECT, _read_program), True),
    Target("trt", ("engines/*/manifest.json", "recipe.json"), (_INSPECT, _open_engine), True),
    Target("recipe", ("mine.toml", "_common.toml"), (
        _cli("recipes", "show", "DIR/mine.toml"), _cli("fit", "demo", "--recipe", "DIR/mine.toml"),
    )),
    Target("conversation", ("chat.json",), (_read_conversation,)),
    Target("gguf", ("*.gguf",), _GGUF_FILE),
    Target("bench", ("a.json",), (_cli("bench", "compare", "DIR/a.json", "DIR/a.json"),)),
)  # fmt: skip


def run_case(
    seed: int,
    artifacts: Path,
    scratch: Path,
    names: Sequence[str] | None = None,
    *,
    in_process: bool = True,
) -> Outcome:
    """Case number `seed`: the same target, damage and command every time.

    names: of the targets to choose from; None for all. in_process: fork this process, which has
    everything imported; else a command line is started as a user would.
    """
    targets = [target for target in TARGETS if names is None or target.name in names]
    rng = random.Random(seed)
    target = targets[seed % len(targets)]
    place = scratch / f"case-{seed}"
    folder, out = place / target.name, place / "outputs"
    out.mkdir(parents=True)
    copy_tree(artifacts / target.name, folder)
    try:
        files = sorted(folder.glob(rng.choice(target.files)))
        damage = mutate(rng.choice(files), rng)
        if target.rehash and rng.random() < 0.5:
            damage += ", hashes right" if _rehash(folder) else ""
        action = rng.choice(target.actions)
        case = f"{seed} {target.name}: {damage}"
        arguments = None if in_process or target.calls_only else action(folder, out)
        if arguments is not None:
            return run_process(arguments, folder, out, case)
        return run_action(action, folder, out, case)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def run_action(
    action: Action, folder: Path, out: Path, case: str, seconds: float = SECONDS
) -> Outcome:
    """Fork, do it, and judge what came of it."""
    before = _listing(folder)
    begin = time.monotonic()
    log = out.parent / "stderr"
    pid = os.fork()
    if pid == 0:
        _child(action, folder, out, log)
    code, timed_out = _wait(pid, seconds)
    spent = time.monotonic() - begin
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    problem = "hang" if timed_out else _problem(code, text)
    if problem is None:
        problem = _litter(before, _listing(folder), out, code)
    return Outcome(case, code, problem, text, spent)


def run_process(arguments: Sequence[str], folder: Path, out: Path, case: str) -> Outcome:
    """The same through a process of its own, as a user would."""
    before, begin = _listing(folder), time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "awq_edge", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=3 * SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Outcome(case, -1, "hang", "", time.monotonic() - begin)
    text = done.stderr.decode("utf-8", "replace")
    problem = _problem(done.returncode, text)
    problem = problem or _litter(before, _listing(folder), out, done.returncode)
    return Outcome(case, done.returncode, problem, text, time.monotonic() - begin)


def _child(action: Action, folder: Path, out: Path, log: Path) -> None:
    code = 70
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        error = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(error, 2)
        # A test's own are its runner's, not the descriptors.
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os.environ["XDG_CACHE_HOME"] = str(out.parent / "cache")
        os.environ["HF_HUB_OFFLINE"] = "1"
        code = _act(action, folder, out)
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
        code = 71
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _act(action: Action, folder: Path, out: Path) -> int:
    """The exit code of a command line, or of a call as the command line would report it."""
    try:
        arguments = action(folder, out)
        if arguments is None:
            return 0
        from awq_edge.cli import main

        sys.argv = ["awq-edge", "--debug", *arguments]
        main()
    except (AwqEdgeError, ModuleNotFoundError) as error:
        told = missing_extra(error) if isinstance(error, ModuleNotFoundError) else error
        if told is None:
            raise
        print(f"error: {one_line(' '.join(str(told).split()))}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return 0


def _wait(pid: int, seconds: float) -> tuple[int, bool]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), False
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -9, True


def _problem(code: int, text: str) -> str | None:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code not in (0, 2):
        return f"exit {code}"
    if _CONTROLS.search(text.replace("\r\n", "\n")):
        return "control characters"
    if code == 2:
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        usage = "Usage:" in text
        if len(errors) != 1 and not usage:
            return "no error line"
        if errors and len(errors[0]) > _LONGEST_ERROR:
            return f"an error of {len(errors[0])} characters"
    return None


def _litter(before: set[str], after: set[str], out: Path, code: int) -> str | None:
    if before != after:
        return f"litter beside the input: {sorted(before ^ after)[:3]}"
    # What a quantization keeps for the next run is no litter: the same command goes on with it.
    left = sorted(path.name for path in out.iterdir() if not path.name.endswith(".blocks"))
    wanted = {"out"} if code == 0 else set()
    if set(left) - wanted:
        return f"litter: {left[:3]}"
    return None


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _rehash(folder: Path) -> bool:
    """Make the manifest's hashes those of the files. False where the manifest is damaged itself."""
    path = folder / MANIFEST
    if not path.is_file():  # the damage may be a pipe in its place
        return False
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"]
        for name in files:
            if (folder / name).is_file() and not (folder / name).is_symlink():
                files[name] = hash_file(folder / name).model_dump()
        path.write_text(json.dumps(manifest), encoding="utf-8", errors="surrogatepass")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return True
