"""Make the virtual environment that scripts/demo, scripts/test and scripts/check run in.

    python3 scripts/environment.py host,dev,eval      prints the environment's bin folder

Standard library only, and syntax that Python 3.6 still reads: an interpreter that is too old must
get the one line that says so. `.venv/awq-edge.json` says what is installed; it reads "installing"
while pip works, so that an environment whose installation was cut short is thrown away and never
taken for a good one.

Variables: PYTHON (checked by scripts/with_environment) makes the environment with that
interpreter, AWQ_EDGE_VENV puts it elsewhere. pip's own variables and configuration apply.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)
STATE = "awq-edge.json"
# A change of any of these makes pip run again.
INPUTS = ("pyproject.toml", "constraints.txt", "awq_edge/_version.py")


def main():
    if sys.version_info < OLDEST:
        fail(
            "awq-edge needs Python {}.{} or newer, {} is {}; install one, or name it: "
            "PYTHON=/path/to/python3".format(*OLDEST, sys.executable, platform.python_version())
        )
    extras = sorted(set(filter(None, sys.argv[1].split(","))))
    venv = Path(os.environ.get("AWQ_EDGE_VENV") or ROOT / ".venv").absolute()
    with_lock(lambda: prepare(venv, extras))
    print(venv / "bin")


def with_lock(action):
    """Run `action` while no other script of this checkout installs."""
    descriptor = os.open(str(ROOT), os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another script that prepares the environment")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        action()
    finally:
        os.close(descriptor)


def prepare(venv, extras):
    """Bring `venv` to a state in which awq-edge is installed with at least `extras`."""
    state = read_state(venv)
    inputs = hash_inputs()
    if state is not None and usable(venv, state):
        if state["inputs"] == inputs and set(extras) <= set(state["extras"]):
            return
        extras = sorted(set(extras) | set(state["extras"]))
    else:
        create(venv)
    version = interpreter_version(venv)
    state = {"root": str(ROOT), "python": version, "extras": extras, "inputs": inputs}
    write_state(venv, dict(state, status="installing"))
    install(venv, extras)
    write_state(venv, dict(state, status="ready"))


def usable(venv, state):
    """Whether the environment was finished, stands where it was made and has its interpreter."""
    wanted = minor_version() if os.environ.get("PYTHON") else state.get("python")
    return (
        state.get("status") == "ready"
        and state.get("root") == str(ROOT)
        and state.get("python") == wanted
        and interpreter_version(venv) == wanted
    )


def create(venv):
    if venv.exists() and any(venv.iterdir()) and read_state(venv) is None:
        fail(
            f"{venv} was not made by this script; move it away, or set AWQ_EDGE_VENV to another "
            "folder"
        )
    try:
        import ensurepip  # noqa: F401  (Debian and Ubuntu ship Python without it)
        import venv as _  # noqa: F401
    except ImportError:
        fail(
            f"{sys.executable} cannot make virtual environments (no ensurepip); install it "
            "(Debian, Ubuntu: apt install python3-venv) or set PYTHON to another interpreter"
        )
    say(f"making {venv} with Python {platform.python_version()}")
    shutil.rmtree(str(venv), ignore_errors=True)
    venv.mkdir(parents=True)
    # First of all, so that a kill from here on leaves an environment known to be unfinished.
    write_state(venv, {"status": "installing"})
    run([sys.executable, "-m", "venv", str(venv)], f"making {venv} failed")


def install(venv, extras):
    package = "[{}]".format(",".join(extras)) if extras else ""
    say(f"installing awq-edge{package} with the versions of constraints.txt")
    if "host" in extras and sys.platform == "linux" and platform.machine() == "x86_64":
        say(
            "torch's Linux wheels on the public index carry CUDA: about 3 GB to download. For a "
            "CPU build let pip find one first (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL)"
        )
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    command += ["--no-compile", "--constraint", "constraints.txt", "--editable", f".{package}"]
    run(command, "installing failed (pip's reason is above); the next run starts over")
    compile_modules(venv)


def compile_modules(venv):
    """Byte-compile what is installed, on all CPUs: pip does it on one, for more than a minute.

    A file that is no Python, as templates in packages are, is left as it is, as pip leaves it.
    """
    python = str(venv / "bin" / "python")
    command = [python, "-m", "compileall", "-qq", "-j", "0", str(venv / "lib")]
    subprocess.call(command, stdout=sys.stderr.fileno())


def run(command, failure):
    # Standard output belongs to the path that main prints.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    code = subprocess.call(command, cwd=str(ROOT), env=environment, stdout=sys.stderr.fileno())
    if code != 0:
        fail(failure)


def interpreter_version(venv):
    """Version of the environment's interpreter, "3.11"; None where it does not start."""
    command = [str(venv / "bin" / "python"), "-I", "-S", "-c"]
    command.append("import sys; print('{}.{}'.format(*sys.version_info))")
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL).decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def minor_version():
    return "{}.{}".format(*sys.version_info)


def hash_inputs():
    digest = hashlib.sha256()
    for name in INPUTS:
        content = (ROOT / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def read_state(venv):
    """What the state file says; an empty dictionary where it is damaged, None where it is not."""
    try:
        state = json.loads((venv / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}


def write_state(venv, state):
    work = venv / (STATE + ".partial")
    work.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    work.replace(venv / STATE)


def say(text):
    print(text, file=sys.stderr, flush=True)


def fail(text):
    say("error: " + text)
    sys.exit(2)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted; the next run starts over")
