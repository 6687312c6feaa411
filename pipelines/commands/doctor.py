"""The command that examines this machine and a cluster; see `pipelines.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import check_target, ray_address, write_text
from pipelines.runs.console import console

commands = typer.Typer()


@commands.command()
def doctor(
    out: Annotated[Path, typer.Option("--out", help="Where runs are to be written.")] = Path(
        "runs"
    ),
    address: Annotated[
        str | None, typer.Option(help="Cluster to examine, such as auto; default: a local one.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the findings to this file.")
    ] = None,
) -> None:
    """Check whether a run will work here and on the cluster; exit code 1 if it will not."""
    from pipelines.cluster import checks
    from pipelines.cluster.doctor import examine

    check_target(json_file)
    findings = []
    for finding in examine(out, address or ray_address()):
        findings.append(finding)
        console.print(checks.table([finding]))
    if json_file is not None:
        write_text(json_file, checks.to_json(findings))
    if checks.failed(findings):
        raise typer.Exit(1)
