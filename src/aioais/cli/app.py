"""The commands of ``aioais``."""

from __future__ import annotations

from typing import Annotated

import typer

from .._version import __version__
from .bench import bench
from .convert import convert
from .demo import demo
from .devices import devices
from .doctor import doctor
from .inspect import inspect

__all__ = ["app"]

app: typer.Typer = typer.Typer(
    help="Asyncio-native inference on Ascend NPUs, and on the CPU through the same engine.",
    no_args_is_help=True,
    add_completion=False,
    # A bug shows Python's own traceback: the decorated one prints all local variables.
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(bench)
app.command(context_settings={"ignore_unknown_options": True})(convert)  # it takes all options of atc
app.command()(devices)
app.command()(doctor)
app.command()(inspect)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"aioais {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...
