"""Writes docs/commands.md from the help texts of `crossreid`; `make docs` runs it."""

from __future__ import annotations

from pathlib import Path

import typer
import typer.cli
import typer.main

from pipelines import cli

TARGET = Path(__file__).with_name("commands.md")


def render() -> str:
    """Every command with its arguments and options, as Markdown."""
    command = typer.main.get_command(cli.app)
    with typer.Context(command) as context:
        return typer.cli.get_docs_for_click(
            obj=command, ctx=context, name="crossreid", title="Commands"
        )


if __name__ == "__main__":
    TARGET.write_text(render())
