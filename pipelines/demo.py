"""The whole pipeline on generated identities: draw, train on Ray, evaluate, report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import config as configuration
from pipelines.errors import UserError
from pipelines.report import page
from pipelines.runs import runlog
from pipelines.runs.console import console
from pipelines.training.driver import train
from reid_core.datasets import synthetic

FAST_IDENTITIES = 80


@dataclass(frozen=True)
class Demo:
    """How a method is shown.

    Attributes:
        recipe: in tune_configs; its `data.kind` is the layout that identities are drawn in.
        fast: overrides of a smoke test.
        identities: that are drawn.
        test_share: of them are tested.
    """

    recipe: str
    fast: tuple[str, ...]
    identities: int = 500
    test_share: float = 0.5


DEMOS = {
    "cclnet": Demo(
        "demo.yaml",
        (
            "cclnet.prepare.epochs=1",
            "cclnet.prepare.batches_per_epoch=4",
            "cclnet.prompts.epochs=2",
            "cclnet.align.epochs=2",
            "cclnet.align.batches_per_epoch=4",
        ),
    ),
    "bmil": Demo(
        "bmil_demo.yaml",
        (
            "bmil.intra.epochs=1",
            "bmil.intra.batches_per_epoch=4",
            "bmil.joint.epochs=2",
            "bmil.joint.batches_per_epoch=4",
        ),
    ),
    "csdn": Demo(
        "csdn_demo.yaml",
        (
            "csdn.prompts.epochs=2",
            "csdn.fusion.epochs=2",
            "csdn.images.epochs=2",
            "csdn.images.batches_per_epoch=4",
        ),
    ),
    "cpcl": Demo(
        "cpcl_demo.yaml",
        ("cpcl.train.epochs=2", "cpcl.train.warmup_epochs=0"),
        identities=300,
        test_share=0.3,
    ),
}


def run(out: Path, *, method: str, seed: int, fast: bool, command: Sequence[str]) -> dict[str, Any]:
    """Run the demo; the same path with fewer identities and steps where `fast`.

    Args:
        out: run directory; the identities are drawn into its folder "data".
        method: a key of `DEMOS`.
        seed: of the identities and of the training.
        fast: a smoke test; its scores mean nothing.
        command: the command line, for the record.

    Returns:
        The summary.

    Raises:
        UserError: see `pipelines.training.driver.train`.
    """
    if method not in DEMOS:
        raise UserError(f"--method {method}: choose one of {', '.join(DEMOS)}")
    root, demo = out / "data", DEMOS[method]
    overrides = [f"data.root={json.dumps(str(root))}", f"seed={seed}", *(demo.fast if fast else ())]
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
        raise UserError(f"cannot generate identities in {root}: {error}") from error
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
