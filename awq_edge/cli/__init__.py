"""The command line. The only package that imports typer and rich; stages are imported when used."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from awq_edge._version import __version__
from awq_edge.cli.bench import bench_app
from awq_edge.cli.build import build
from awq_edge.cli.build_plugins import build_plugins
from awq_edge.cli.chat import chat
from awq_edge.cli.doctor import doctor
from awq_edge.cli.eval import eval_app
from awq_edge.cli.export import export
from awq_edge.cli.fit import fit
from awq_edge.cli.inspect import inspect
from awq_edge.cli.quantize import quantize
from awq_edge.cli.recipes import recipes_app
from awq_edge.cli.run import run
from awq_edge.cli.serve import serve
from awq_edge.cli.study import study
from awq_edge.terminal_text import one_line

app = typer.Typer(
    name="awq-edge",
    help="Language models in 4-bit weights on Jetson, RTX laptops and CPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
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


app.command()(fit)
app.command()(quantize)
app.command()(export)
app.command()(build)
app.command()(run)
app.command()(chat)
app.command()(serve)
app.command()(inspect)
app.command()(doctor)
app.command()(study)
app.command()(build_plugins)
app.add_typer(bench_app)
app.add_typer(eval_app)
app.add_typer(recipes_app)


def main() -> None:
    """Run the command line; exit code 0, 2 for an error of the user's, 1 for one of ours."""
    from awq_edge.errors import AwqEdgeError

    debug = "--debug" in sys.argv[1:]
    if debug:
        # Accepted anywhere on the line: it is typed after a command has failed.
        sys.argv = [sys.argv[0], "--debug", *(a for a in sys.argv[1:] if a != "--debug")]
    try:
        app()
    except AwqEdgeError as error:
        if debug:
            raise
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ModuleNotFoundError):
            _fail_missing(error)
        _fail(
            f"unexpected {type(error).__name__}: {error} "
            "(a defect of awq-edge: run again with --debug and report the traceback)",
            1,
        )


def _fail_missing(error: ModuleNotFoundError) -> None:
    """Say which extra to install, if `error` is about a package of one."""
    from awq_edge.extras import missing_extra

    missing = missing_extra(error)
    if missing is not None:
        _fail(str(missing), 2)


def _fail(message: str, code: int) -> None:
    # Texts of other packages, in a message of ours, may be of several lines with their own indents.
    print(f"error: {one_line(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)
