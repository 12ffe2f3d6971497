"""The command line. The only package that imports typer and rich; stages are imported when used."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
from collections.abc import Callable, Iterator
from inspect import getdoc
from typing import Annotated, Any

import typer

from awq_edge._version import __version__
from awq_edge.cli.bench import bench_app
from awq_edge.cli.build import build
from awq_edge.cli.build_plugins import build_plugins
from awq_edge.cli.chat import chat
from awq_edge.cli.doctor import doctor
from awq_edge.cli.ending import exit_code
from awq_edge.cli.eval import eval_app
from awq_edge.cli.export import export
from awq_edge.cli.fit import fit
from awq_edge.cli.generated import GroupedCommand, command
from awq_edge.cli.inspect import inspect
from awq_edge.cli.quantize import quantize
from awq_edge.cli.recipes import recipes_app
from awq_edge.cli.run import run
from awq_edge.cli.serve import serve
from awq_edge.cli.streams import StandardStreams
from awq_edge.cli.study import study
from awq_edge.process.interruption import termination_as_exception

_COMMANDS: dict[str, Callable[..., None] | typer.Typer] = {
    "fit": fit,
    "quantize": quantize,
    "export": export,
    "build": build,
    "run": run,
    "chat": chat,
    "serve": serve,
    "inspect": inspect,
    "doctor": doctor,
    "study": study,
    "build-plugins": build_plugins,
    "bench": bench_app,
    "eval": eval_app,
    "recipes": recipes_app,
}
_HIDDEN = "study"


@functools.cache
def _made(name: str) -> Any:
    """The command as click has it: its options take longer to make than a whole `--help`."""
    source = _COMMANDS[name]
    if isinstance(source, typer.Typer):
        return typer.main.get_command(source)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    passed_on = {"ignore_unknown_options": True, "allow_extra_args": True}
    hidden = name == _HIDDEN
    app.command(
        name, cls=GroupedCommand, hidden=hidden, context_settings=passed_on if hidden else None
    )(command(source))
    return typer.main.get_command(app)


class _Group(typer.core.TyperGroup):
    """Commands whose interruptions and I/O errors reach `run_app` as they are."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _escaping():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _escaping():
            return super().invoke(ctx)


class _LazyGroup(_Group):
    """The commands of `awq-edge`, each made when it is used."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: _outline(name) for name in _COMMANDS}

    def get_command(self, ctx: Any, name: str) -> Any:
        return _made(name) if name in _COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        shown = {name: each for name, each in self.commands.items() if name != _HIDDEN}
        width = formatter.width - 6 - max(map(len, shown))
        with formatter.section("Commands"):
            formatter.write_dl([(n, each.get_short_help_str(width)) for n, each in shown.items()])


def _outline(name: str) -> typer.core.TyperCommand:
    """A command without its options, for the line about it."""
    source = _COMMANDS[name]
    text = source.info.help if isinstance(source, typer.Typer) else getdoc(source)
    return typer.core.TyperCommand(name, help=text)


def new_app(name: str, help: str, cls: type[_Group] = _Group) -> typer.Typer:
    """A command line for `run_app`."""
    return typer.Typer(
        name=name,
        cls=cls,
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


app = new_app(
    "awq-edge", "Language models in 4-bit weights on Jetson, RTX laptops and CPUs.", _LazyGroup
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    pass


class _Escaped(Exception):
    """An exception that typer would turn into an exit code, on its way to `run_app`."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@contextlib.contextmanager
def _escaping() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, EOFError, OSError) as error:
        raise _Escaped(error) from error


def main() -> None:
    """Run the command line `awq-edge`, see `run_app`."""
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a command line; exit code 0, 2 for an error of the user's or the machine's, 1 for one of
    ours, 130 for Ctrl-C, 143 for SIGTERM."""
    debug = "--debug" in sys.argv[1:]
    if debug:
        # Accepted anywhere on the line: it is typed after a command has failed.
        sys.argv = [sys.argv[0], "--debug", *(a for a in sys.argv[1:] if a != "--debug")]
    streams = StandardStreams()
    try:
        try:
            with termination_as_exception():
                streams.open()
                code = app(standalone_mode=False)
                streams.flush()
        except SystemExit:
            raise
        except BaseException as error:
            cause = error.error if isinstance(error, _Escaped) else error
            if debug and isinstance(cause, Exception) and not hasattr(cause, "show"):
                raise cause from None
            code = exit_code(cause)
    finally:
        if streams.guarded:  # this process is the command's, and the command has ended
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        streams.close()
    if code:
        sys.exit(code)
