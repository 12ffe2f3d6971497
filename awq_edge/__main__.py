"""`python -m awq_edge` and the program `awq-edge`: the command line.

Its import takes some tenths of a second. Ctrl-C in that time ends the process at once, in one line:
nothing has begun, and what an import is interrupted in may swallow an exception. Until `main` is
called the interpreter's own traceback would come, so that nothing that takes time is imported
before: `signal` itself waits for enum, the extension module under it is built in.
"""

import _signal  # type: ignore[import-not-found]
import os


def _end(number: int, frame: object) -> None:
    os.write(2, b"error: interrupted: nothing was begun; give the same command again\n")
    os._exit(128 + number)


def main() -> None:
    """Run the command line, see `awq_edge.cli.run_app`."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not ignored, as by nohup
        _signal.signal(_signal.SIGINT, _end)
    from awq_edge.cli import main as run

    run()


if __name__ == "__main__":
    main()
