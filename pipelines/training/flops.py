"""Floating-point operations of a step, by torch's own table of formulas.

The formulas look at shapes alone, so operations can be counted while they run or on tensors that
have a shape, a device and no numbers. The second way is for compiled steps, which show no single
operation, and whose device should not take one that is not compiled for the sake of a log line.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pipelines.config.trainer import TrainerConfig
from pipelines.distributed import collectives
from pipelines.training import step
from pipelines.training.global_loss import Means
from reid_core.stage import Gather, Stage

log = logging.getLogger(__name__)


def while_it_runs(take: Callable[[], None]) -> int:
    """The operations that pass while something is done."""
    counter = _Counter()
    with counter:
        take()
    return counter.flops


def without_running(stage: Stage, batch: object, settings: TrainerConfig) -> int | None:
    """The operations of a step on one worker that is not taken: nothing changes, no device works.

    The step is taken by a copy of the stage and of the batch whose tensors hold no numbers. It is
    not compiled, and other workers, of which it asks nothing, are said to hold what this one does.
    Updates of the memory are left out: some look at labels, and at published sizes they are less
    than a thousandth of a step.

    Args:
        stage, batch, settings: as `step.take` takes them, before the step.

    Returns:
        None, with a warning that says why, where a step asks for numbers. No run ends for this.
    """
    shapes = FakeTensorMode(allow_non_fake_inputs=True)
    world = collectives.world_size()
    try:
        with FakeCopyMode(shapes):
            own, rows = copy.deepcopy((stage, batch))  # a copied module is not a compiled one
        own.update = _nothing  # type: ignore[method-assign]
        echo = collectives.joined(_Echo(world)) if world > 1 else nullcontext()
        with echo, shapes:
            work = own, own.module, _NoOptimizer(), rows, Means()
            return while_it_runs(lambda: step.take(*work, settings=settings))
    except Exception as error:
        log.warning(
            "the operations of a step are not counted, so flops_per_step and mfu are not known: "
            "%s: %s",
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return None


class _Counter(TorchDispatchMode):
    """Adds up what the table says about the operations that pass."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = kwargs or {}
        out = func(*args, **named)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **named, out_val=out)
        return out


def _nothing(gather: Gather) -> None:
    """In place of `Stage.update`."""


class _NoOptimizer(torch.optim.Optimizer):
    """Holds nothing and changes nothing: an optimizer's step is in no formula."""

    def __init__(self) -> None:
        super().__init__([torch.empty(0)], {})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Nothing."""


class _Echo:
    """The first of some workers, all of whom hold the same; see `collectives.Group`."""

    rank = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.size)

    def sum(self, x: Tensor) -> Tensor:
        return self.size * x

    def broadcast_int(self, value: int) -> int:
        return value
