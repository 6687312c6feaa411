"""The number of workers is not a hyper-parameter: real stages on 1, 2 and 4 gloo processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.optim.optimizer import register_optimizer_step_post_hook

from pipelines.config.run import RunConfig
from pipelines.runs import checkpoint, runlog
from pipelines.training import deterministic, loop
from pipelines.training.epoch import EpochStart
from pipelines.training.step import data_parallel
from reid_core.types import Batch, Modality
from tests.pipelines import small_runs
from tests.pipelines.processes import free_port, join_group

pytestmark = pytest.mark.slow
WORLDS = (1, 2, 4)
# the last streamed stage of each method, as one step, and what comes before it
ONE_STEP = {
    "cclnet": ("prompts", ["cclnet.align.batches_per_epoch=1"]),
    "bmil": ("intra", ["bmil.joint.batches_per_epoch=1"]),  # one of each kind of labels
    "csdn": ("fusion", ["csdn.images.batches_per_epoch=1"]),
    "cpcl": (None, ["cpcl.train.batch_size=48"]),
}
THREE_EPOCHS = {"cclnet": "cclnet.align.epochs=3", "csdn": "csdn.images.epochs=3"}
THREE_EPOCHS |= {"bmil": "bmil.joint.epochs=3", "cpcl": "cpcl.train.epochs=3"}
CASES = [(method, world) for world in WORLDS[1:] for method in ONE_STEP]
for settings in (ONE_STEP, THREE_EPOCHS):  # and each on a vision transformer
    settings |= {f"{method}-vit": value for method, value in settings.items()}
CASES += [(method, 2) for method in ONE_STEP if method.endswith("-vit")]
ONE_STEP["cclnet-ours"] = (None, ["cclnet.align.batches_per_epoch=1"])
THREE_EPOCHS["cclnet-ours"] = "cclnet.align.epochs=3"
CASES += [("cclnet-ours", world) for world in WORLDS[1:]]


class EnoughError(Exception):
    """Ends a run after the epoch that is asked for."""


# In the workers ----------------------------------------------------------------------------------


def worker(rank: int, world: int, port: int, root: Path, method: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        join_group(rank, world, port, minutes=10)
    folder = root / f"{method}-{world}-{rank}"
    result = {"strict": run_strictly(method, root, folder / "strict")}
    with double_precision():
        result["step"] = take_one_step(method, root, folder / "step")
    if method == "cclnet":
        run_plainly(root, folder / "plain")
    torch.save(result, folder / "result.pt")
    if world > 1:
        dist.destroy_process_group()


@contextmanager
def double_precision() -> Iterator[None]:
    """All mathematics in float64, features for the clustering excepted.

    In float32 a rectifier whose input is zero up to rounding opens for one number of workers and
    not for another, and some gradients then differ in the third digit: true of any two runs.
    """
    single, hand_in = Tensor.float, small_runs.EveryonesBank.add_features

    def hand_in_single(bank: Any, token: int, key: Any, m: Any, x: Any, *rest: int) -> None:
        hand_in(bank, token, key, m, x.to(torch.float32), *rest)

    Tensor.float = Tensor.double  # type: ignore[method-assign]
    small_runs.EveryonesBank.add_features = hand_in_single  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.float = single  # type: ignore[method-assign]
        small_runs.EveryonesBank.add_features = hand_in  # type: ignore[method-assign]


def doubled(tree: Any) -> Any:
    """Nested dicts with float64 for every float32."""
    if isinstance(tree, dict):
        return {key: doubled(value) for key, value in tree.items()}
    return tree.double() if isinstance(tree, Tensor) and tree.is_floating_point() else tree


def take_one_step(method: str, root: Path, folder: Path) -> dict[str, Any]:
    """One step from the state before the stage: what came in and what came out."""
    before, overrides = ONE_STEP[method]
    config = small_runs.make_config(method, root, *overrides)
    state = None if before is None else doubled(checkpoint.load(root / f"{method}-{before}"))
    run = small_runs.open_run(config, folder)
    grads: list[Tensor] = []
    result: dict[str, Any] = {}

    def keep_grads(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

    def report(line: dict[str, Any], state: dict[str, Any] | None) -> None:
        result.update(losses=line["losses"])
        if state is not None:
            buffers = {k: x for k, x in state["module"].items() if "running_" in k}
            result.update(buffers=buffers, banks=state["epoch"])
        raise EnoughError

    def batches(start: EpochStart) -> Iterator[dict[Modality, Batch]]:
        result.update(plan=checkpoint.content_hash(vars(start.plan)))
        return run.batches(start)

    hook = register_optimizer_step_post_hook(keep_grads)
    work = run.job, run.bank, batches, report

    def distribute(module: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        return data_parallel(module.double(), optimizer)

    with suppress(EnoughError):
        loop.TrainingLoop(*work, device=small_runs.CPU, state=state, distribute=distribute).run()
    hook.remove()
    return {**result, "grads": grads}


def run_strictly(method: str, root: Path, folder: Path) -> list[str]:
    """Hashes of every epoch's state, labels among it; on rank 0."""
    config = small_runs.make_config(method, root, "trainer.strict=true", THREE_EPOCHS[method])
    run, remaining = small_runs.open_run(config, folder), small_runs.Kept(folder / "kept")
    deterministic.train(run.job, run.bank, run.batches, remaining, device=small_runs.CPU)
    return remaining.hashes


def run_plainly(root: Path, folder: Path) -> None:
    config = small_runs.make_config("cclnet", root, THREE_EPOCHS["cclnet"])
    run = small_runs.open_run(config, folder)
    deterministic.train(run.job, run.bank, run.batches, lambda *_: None, device=small_runs.CPU)


# Before and after them ---------------------------------------------------------------------------


def prepare_state(method: str, config: RunConfig, root: Path, stage: str) -> None:
    """Train up to the end of a stage, in this process."""
    run = small_runs.open_run(config, root / f"{method}-before")

    def report(line: dict[str, Any], state: dict[str, Any] | None) -> None:
        last = getattr(config.settings, stage).epochs - 1
        if (line["stage"], line["epoch"]) == (stage, last):
            assert state is not None
            checkpoint.save(root / f"{method}-{stage}", state, {})
            raise EnoughError

    with pytest.raises(EnoughError):
        deterministic.train(run.job, run.bank, run.batches, report, device=small_runs.CPU)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which workers leave what they found."""
    root = tmp_path_factory.mktemp("agreement")
    small_runs.write_trees(root)
    return root


def result_of(root: Path, method: str, world: int, rank: int = 0) -> dict[str, Any]:
    """What one of several workers found; they run when the first one is asked for."""
    file = root / f"{method}-{world}-{rank}" / "result.pt"
    if not file.exists():
        stage, _ = ONE_STEP[method]
        if stage is not None and not (root / f"{method}-{stage}").exists():
            prepare_state(method, small_runs.make_config(method, root), root, stage)
        spawn(worker, args=(world, free_port(), root, method), nprocs=world)
    return torch.load(file)


def distances(result: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Of gradients; the bias of attention's keys moves no softmax, so its gradient is rounding."""
    norms = [float(gradient.norm()) for gradient in expected]
    return [
        distance(a, b)
        for a, b, norm in zip(result, expected, norms, strict=True)
        if norm > 1e-6 * max(norms)
    ]


def distance(a: Tensor, b: Tensor) -> float:
    """Of two tensors, as a share of the second one's norm."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))


@pytest.mark.parametrize(("method", "world"), CASES)
def test_one_step_is_that_of_one_worker(
    root: Path, method: str, world: int, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, rows = result_of(root, method, 1)["step"], []
    for rank in range(world):
        step = result_of(root, method, world, rank)["step"]
        assert step["plan"] == alone["plan"]
        for name, loss in alone["losses"].items():
            assert step["losses"][name] == pytest.approx(loss, rel=1e-5), name
        rows += distances(step["grads"], alone["grads"])
    first = result_of(root, method, world)["step"]
    for kind in ("buffers", "banks"):
        for name, tensor in alone[kind].items():
            rows.append(distance(first[kind][name], tensor))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{method}, {world} workers: furthest tensor {max(rows):.1e} of its norm"
        )
    assert len(rows) > 50
    assert max(rows) < 1e-5


@pytest.mark.parametrize(("method", "world"), CASES)
def test_strict_runs_are_equal_to_the_bit(root: Path, method: str, world: int) -> None:
    alone = result_of(root, method, 1)["strict"]
    assert result_of(root, method, world)["strict"] == alone
    assert len(set(alone)) == len(alone) >= 3


def test_the_first_epoch_with_another_label_is_told(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not strict: the first clustering is the same, a later one need not be."""
    for world in WORLDS:
        result_of(root, "cclnet", world)
    for world in WORLDS[1:]:
        runs = (root / f"cclnet-{n}-0" / "plain" for n in (1, world))
        epoch = runlog.first_difference(*runs)
        with capsys.disabled():
            sys.stdout.write(f"\ncclnet, {world} workers: first epoch with another label: {epoch}")
        assert epoch != ("prepare", 0)
    strict_runs = (root / f"cclnet-{n}-0" / "strict" for n in (1, 4))
    assert runlog.first_difference(*strict_runs) is None
