"""BMIL: unsupervised visible-infrared re-identification, clustered jointly and without bias.

Imports no torch; what needs it is imported when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reid_core.method import Demo, Method
from reid_core.methods.bmil import settings
from reid_core.methods.bmil.settings import INPUTS, Config
from reid_core.methods.bmil.words import WORDS
from reid_core.methods.late import Late

if TYPE_CHECKING:
    from reid_core.methods.bmil.between_epochs import begin_epoch
    from reid_core.methods.bmil.opening import load_encoder, open_stage
else:
    begin_epoch = Late(f"{__name__}.between_epochs", "begin_epoch")
    load_encoder = Late(f"{__name__}.opening", "load_encoder")
    open_stage = Late(f"{__name__}.opening", "open_stage")

METHOD = Method(
    name="bmil",
    title="BMIL",
    config=Config,
    inputs=INPUTS,
    words=WORDS,
    demo=Demo(
        recipe="bmil_demo.yaml",
        fast=(
            "bmil.intra.epochs=1",
            "bmil.intra.batches_per_epoch=4",
            "bmil.joint.epochs=2",
            "bmil.joint.batches_per_epoch=4",
        ),
    ),
    supervision=settings.supervision,
    needs_text=settings.needs_text,
    stages=settings.stages,
    batch_rows=settings.batch_rows,
    augmentations=settings.augmentations,
    check=settings.check,
    begin_epoch=begin_epoch,
    open_stage=open_stage,
    load_encoder=load_encoder,
    needs_cameras=settings.needs_cameras,
    averages=settings.averages,
    spent_at_opening={"joint": settings.HANDED_WEIGHTS},
)
