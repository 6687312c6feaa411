"""CCLNet: unsupervised visible-infrared re-identification.

Imports no torch; what needs it is imported when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reid_core.method import Demo, Method, Released
from reid_core.methods.cclnet import settings
from reid_core.methods.cclnet.settings import INPUTS, Config
from reid_core.methods.cclnet.words import WORDS
from reid_core.methods.late import Late

if TYPE_CHECKING:
    from reid_core.methods.cclnet.between_epochs import begin_epoch, cluster
    from reid_core.methods.cclnet.opening import load_encoder, open_stage
    from reid_core.methods.cclnet.released import module_state
else:
    begin_epoch = Late(f"{__name__}.between_epochs", "begin_epoch")
    cluster = Late(f"{__name__}.between_epochs", "cluster")
    load_encoder = Late(f"{__name__}.opening", "load_encoder")
    open_stage = Late(f"{__name__}.opening", "open_stage")
    module_state = Late(f"{__name__}.released", "module_state")

METHOD = Method(
    name="cclnet",
    title="CCLNet",
    config=Config,
    inputs=INPUTS,
    words=WORDS,
    demo=Demo(
        recipe="demo.yaml",
        fast=(
            "cclnet.prepare.epochs=1",
            "cclnet.prepare.batches_per_epoch=4",
            "cclnet.prompts.epochs=2",
            "cclnet.align.epochs=2",
            "cclnet.align.batches_per_epoch=4",
        ),
    ),
    supervision=settings.supervision,
    needs_text=settings.needs_text,
    stages=settings.stages,
    batch_rows=settings.batch_rows,
    augmentations=settings.augmentations,
    check=settings.check,
    cluster=cluster,
    begin_epoch=begin_epoch,
    open_stage=open_stage,
    load_encoder=load_encoder,
    can_accumulate=True,
    needs_cameras=settings.needs_cameras,
    averages=settings.averages,
    without_text="cclnet.image_to_text=0",
    released=Released(
        stage="align",
        model={"name": "RN50", "pretrained": "openai", "height": 288, "width": 144},
        module_state=module_state,
    ),
)
