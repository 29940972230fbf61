"""The application ``mikit``: one function for each command, registered here.

Modules of commands import torch only when the command is run, so that ``mikit --help`` is fast.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mikit.cli.bench import bench
from mikit.cli.capture import capture
from mikit.cli.demo import demo
from mikit.cli.distill import distill
from mikit.cli.doctor import doctor
from mikit.cli.estimate import estimate
from mikit.cli.flow import match, phases
from mikit.cli.terminal import say
from mikit.cli.trace import report, trace
from mikit.core.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="mikit",
    help="Measure mutual information between the activations of neural networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench)
for verb in (estimate, trace, report, demo, distill, capture, phases, match, doctor):
    app.command()(verb)


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def _begin(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        say(__version__)
        raise typer.Exit
