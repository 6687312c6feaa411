"""`crossreid demo`: the whole pipeline on generated identities, draw, train, evaluate, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import Out
from pipelines.commands.training import show
from pipelines.errors import UserError
from pipelines.runs.console import console
from pipelines.storage.files import reason

if TYPE_CHECKING:
    from pipelines.runs.records import Summary

commands = typer.Typer()
FAST_IDENTITIES = 80


@commands.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the identities and of the training.")] = 0,
    fast: Annotated[bool, typer.Option("--fast", help="A smoke test: seconds, no scores.")] = False,
    method: Annotated[
        str | None, typer.Option(help="By name; the first unless given; an unknown one lists them.")
    ] = None,
) -> None:
    """Draw identities, train all stages of a method on a local Ray cluster, evaluate, report."""
    show(run(out, method=method, seed=seed, fast=fast, command=sys.argv), out)


def run(out: Path, *, method: str | None, seed: int, fast: bool, command: Sequence[str]) -> Summary:
    """Run the demo; the same path with fewer identities and steps where `fast`.

    Args:
        out: run directory; the identities are drawn into its folder "data".
        method: a key of `METHODS`; the first one unless given.
        seed: of the identities and of the training.
        fast: a smoke test; its scores mean nothing.
        command: the command line, for the record.

    Returns:
        The summary.

    Raises:
        UserError: see `pipelines.training.driver.train`.
    """
    from pipelines.config import run as configuration
    from pipelines.report import page
    from pipelines.runs import runlog
    from pipelines.training.driver import train
    from reid_core.datasets import synthetic
    from reid_core.methods import DEFAULT, METHODS

    method = method or DEFAULT
    if method not in METHODS:
        raise UserError(f"--method {method}: choose one of {', '.join(METHODS)}")
    root, demo = out / "data", METHODS[method].demo
    overrides = [f"data.root={root}", f"seed={seed}", *(demo.fast if fast else ())]
    config = configuration.load(Path(demo.recipe), overrides)
    identities = FAST_IDENTITIES if fast else demo.identities
    console.print(f"drawing {identities} identities and what the cameras see of them ...")
    began = time.perf_counter()
    try:
        synthetic.write(
            root,
            num_identities=identities,
            seed=seed,
            layout=config.data.kind,
            test_share=demo.test_share,
            workers=2,
        )
    except (ValueError, OSError) as error:
        raise UserError(f"cannot generate identities in {root}: {reason(error)}") from error
    drawn = time.perf_counter() - began
    console.print(
        f"training {config.method} with {config.trainer.num_workers} workers on "
        f"{config.model.name}, {config.model.height}x{config.model.width} pixels ..."
    )
    summary = train(config, out, command)
    summary["seconds"] = {"generate": drawn, **summary["seconds"]}
    summary["seconds"]["total"] += drawn
    runlog.write_summary(out, summary)
    page.write(out)
    return summary
