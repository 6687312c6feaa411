"""What two processes exchange in a step, counted where it leaves them: whose, and how often."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.profiler import ProfilerActivity, profile

from pipelines.distributed import batchnorm, collectives
from pipelines.training import deterministic, step
from tests.pipelines import small_runs
from tests.pipelines.processes import free_port, join_group
from tests.waits import operations_of

pytestmark = pytest.mark.slow
# Per step of each stage, BatchNorm's and those of the gradients excepted; see test_host_syncs.py.
EXPECTED = {
    "cclnet": {"Images prepare": 2, "Prompting": 5, "Images align": 2},
    "bmil": {"Images intra separate": 3, "Images joint separate": 3, "Images joint joint": 2},
    "csdn": {"Prompting": 5, "Fusing": 5, "Imaging": 3},
    "cpcl": {"Train": 3},
}
COMPRESSION = ("none", "bf16")


# In the workers ----------------------------------------------------------------------------------


def worker(rank: int, port: int, root: Path) -> None:
    torch.set_num_threads(1)
    join_group(rank, 2, port, minutes=10)
    result = {method: count(method, root, root / f"{method}-{rank}") for method in EXPECTED}
    for kind in COMPRESSION:
        result[kind] = compressed(kind, root, root / f"{kind}-{rank}")
    torch.save(result, root / f"{rank}.pt")
    dist.destroy_process_group()


def count(method: str, root: Path, folder: Path) -> dict[str, dict[str, int]]:
    """Of a small run, by stage and kind of batch.

    DDP settles its buckets in the second step of a stage, so later ones are counted.
    """
    result: dict[str, dict[str, int]] = {}
    take, steps = step.take, Counter[str]()
    of_norms = Counter[str]()

    def watch(stage: Any, model: Any, optimizer: Any, batch: Any, *rest: Any, **named: Any) -> None:
        kinds = {part.kind for part in batch.values()} if isinstance(batch, dict) else {""}
        name = " ".join([type(stage).__name__, getattr(stage, "name", "")]).strip()
        steps[name] += 1
        of_norms.clear()
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            take(stage, model, optimizer, batch, *rest, **named)
        if steps[name] > 2:
            operations = operations_of(watched)
            result[" ".join([name, *kinds]).strip()] = {
                "operations": of("aten::", operations),
                "total": of("c10d::", operations),
                "norms": of_norms.total(),
                "layers": sum(
                    isinstance(x, batchnorm.GlobalBatchNorm) and x.training
                    for x in stage.module.modules()
                ),
                "gradients": len(model._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(",")),
            }

    def counted(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            of_norms[name] += 1
            return getattr(collectives, name)(*arguments)

        return call

    calls = {name: counted(name) for name in ("gather", "gather_rows", "sum_over_workers")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "take", watch)
        patch.setattr(batchnorm, "collectives", SimpleNamespace(**vars(collectives) | calls))
        train(small_runs.make_config(method, root), folder)
    return result


def of(prefix: str, operations: Counter[str]) -> int:
    return sum(n for name, n in operations.items() if name.startswith(prefix))


def compressed(kind: str, root: Path, folder: Path) -> dict[str, Any]:
    """Losses of two epochs, and what DDP says that it does with gradients."""
    hooks: list[str] = []
    take = step.take

    def watch(stage: Any, model: Any, *rest: Any, **named: Any) -> None:
        take(stage, model, *rest, **named)
        hooks.append(model._get_ddp_logging_data().get("comm_hook", ""))

    config = small_runs.make_config(
        "cclnet",
        root,
        f"trainer.gradient_compression={kind}",
        "cclnet.image_to_text=0",
        "cclnet.labels=identities",  # another cluster is another loss, not rounding
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "take", watch)
        losses = train(config, folder)
    return {"losses": losses, "hooks": hooks}


def train(config: Any, folder: Path) -> list[dict[str, float]]:
    run, losses = small_runs.open_run(config, folder), []
    deterministic.train(
        run.job,
        run.bank,
        run.batches,
        lambda line, _: losses.append(line["losses"]),
        device=small_runs.CPU,
    )
    return losses


# After them --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(trees: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of both workers."""
    root = tmp_path_factory.mktemp("exchanges")
    for kind in trees.iterdir():
        (root / kind.name).symlink_to(kind)
    spawn(worker, args=(free_port(), root), nprocs=2)
    return [torch.load(root / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("method", EXPECTED)
def test_a_step_exchanges_twice_a_norm_once_a_bucket_and_little_else(
    results: list[dict[str, Any]], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`-s` shows the numbers, which are those of docs/benchmarks.md."""
    first, second = (result[method] for result in results)
    own = {}
    for name, counts in first.items():
        assert counts["norms"] == 2 * counts["layers"], name
        assert counts["gradients"] >= 1
        own[name] = counts["total"] - counts["norms"] - counts["gradients"]
        with capsys.disabled():
            sys.stdout.write(f"\n{method}, {name}: {own[name]} of {counts}")
    assert own == EXPECTED[method]
    for name, counts in second.items():
        assert {**counts, "operations": 0} == {**first[name], "operations": 0}


def test_compressed_gradients_change_the_losses_by_their_rounding(
    results: list[dict[str, Any]],
) -> None:
    for result in results:
        plain, rounded = (result[kind] for kind in COMPRESSION)
        assert set(plain["hooks"]) == {""}
        assert set(rounded["hooks"]) == {"bf16_compress_hook"}
        assert plain["losses"] != rounded["losses"]
        assert len(plain["losses"]) == 2
        for before, after in zip(plain["losses"], rounded["losses"], strict=True):
            assert after == pytest.approx(before, rel=0.01)
    assert results[0]["bf16"]["losses"] == results[1]["bf16"]["losses"]
