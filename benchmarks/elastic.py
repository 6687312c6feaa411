"""Does a run on nodes that go and come end as if nothing had happened? Two workers, one, two.

Three nodes on this machine: a head, and two with a logical GPU each, so that every worker has a
node of its own. CCLNet's last stage trains twice with `trainer.strict`, undisturbed and with
`trainer.min_workers=1`: after an epoch one GPU node is removed, two epochs later a new one joins.
Printed is how many workers finished each epoch, and on how many nodes. Strict training makes the
same state for any number of workers, so both runs must end with the same content hash. The memory
actor must live on the node of the driver, and every block be decoded on the node of its worker.

    python -m benchmarks.elastic [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from pipelines.config import run as configuration
from pipelines.runs import checkpoint, recovery, runlog
from reid_core.datasets import synthetic

WORKERS = (2, 1, 1, 2)  # per epoch, in the run on nodes that go and come
STEPS = 3
_WATCH_S = 0.2


def settings(data: Path, address: str) -> list[str]:
    """The last stage of the demo in a few steps."""
    return [
        f"data.root={data}",
        f"ray.address={address}",
        "model.height=32",
        "model.width=16",
        "evaluation.start=false",
        "cclnet.image_to_text=0",
        "cclnet.clustering.k1=8",
        "cclnet.clustering.min_samples=2",
        f"cclnet.align.epochs={len(WORKERS)}",
        f"cclnet.align.batches_per_epoch={STEPS}",
        "cclnet.align.clusters_per_batch=4",
        "cclnet.align.evaluate_every=0",
        "trainer.num_workers=2",
        "trainer.strict=true",
        "trainer.shards=2",
        "trainer.batches_per_block=2",
    ]


def watched(group: Any, notes: Path, *, gated: bool) -> dict[str, Any]:
    """What replaces names of the group of workers, so that they tell where they are.

    In a gated run they wait until there are as many of them as there should be. Logical GPUs
    compute nothing: workers take the CPU and gloo. Functions of this file travel by value.
    """
    import ray
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import ScalingConfig

    work = group.work

    def armed_work(given: dict[str, Any]) -> None:
        import torch

        from pipelines.data import datasource as stream
        from pipelines.distributed import collectives
        from pipelines.training.equipment import Equipment

        mock.patch.object(stream, "DecodeAndAugment", noting_decode(notes)).start()
        run_dir = given["job"].run_dir
        ray.train.torch.get_device = lambda: torch.device("cpu")
        world = ray.train.get_context().get_world_size()
        node = ray.get_runtime_context().get_node_id()
        begin_epoch = Equipment.begin_epoch

        def armed_begin(self: Equipment, name: str, epoch: int) -> None:
            while gated and world != WORKERS[epoch]:  # until the group is ended for another size
                if newest_registered(run_dir) == epoch - 1:
                    (notes / "wanted").write_text(str(WORKERS[epoch]))
                time.sleep(_WATCH_S)
            with (notes / "places").open("a") as file:
                place = {"epoch": epoch, "workers": world, "rank": collectives.rank(), "node": node}
                file.write(json.dumps(place) + "\n")
            begin_epoch(self, name, epoch)

        Equipment.begin_epoch = armed_begin  # type: ignore[method-assign]
        work(given)

    return {
        "work": armed_work,
        "TorchTrainer": partial(TorchTrainer, torch_config=TorchConfig(backend="gloo")),
        "ScalingConfig": partial(ScalingConfig, elastic_resize_monitor_interval_s=5),
    }


def placed(make_bank: Callable[..., Any], notes: Path) -> Callable[..., Any]:
    """`bank_on_ray` that tells where bank and driver are."""
    import ray

    @contextmanager
    def placed_bank(*given: Any, **options: Any) -> Iterator[Any]:
        with make_bank(*given, **options) as bank:
            where = bank.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())
            (notes / "bank").write_text(ray.get(where))
            (notes / "driver").write_text(ray.get_runtime_context().get_node_id())
            yield bank

    return placed_bank


def noting_decode(notes: Path) -> type:
    """`DecodeAndAugment` that tells where it is called."""
    import ray

    from pipelines.data.decode import DecodeAndAugment

    class NotingDecode(DecodeAndAugment):
        def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
            with (notes / "decoded").open("a") as file:
                node = ray.get_runtime_context().get_node_id()
                file.write(json.dumps({"rank": int(block["rank"][0]), "node": node}) + "\n")
            return super().__call__(block)

    return NotingDecode


def newest_registered(run_dir: Path) -> int:
    """The last epoch that Ray Train would go on from; -1 for none."""
    infos = [run_dir / name / checkpoint.INFO for name in recovery._listed(run_dir)]
    return max(
        (json.loads(path.read_text())["epoch"] for path in infos if path.exists()), default=-1
    )


def keep_nodes(cluster: Any, nodes: list[Any], notes: Path, over: threading.Event) -> None:
    """Remove a GPU node when one worker is wanted, add one when two are."""
    while not over.wait(_WATCH_S):
        wanted = (notes / "wanted").read_text() if (notes / "wanted").exists() else ""
        if wanted == "1" and len(nodes) == 2:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        elif wanted == "2" and len(nodes) == 1:
            nodes.append(gpu_node(cluster))


def gpu_node(cluster: Any) -> Any:
    """A node for one worker, and for decoding beside it."""
    return cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=150 * 2**20)


def run(cluster: Any, nodes: list[Any], folder: Path, data: Path, *extra: str) -> dict[str, Any]:
    """Train once; with further settings on nodes that go and come."""
    from pipelines.training import driver, group
    from pipelines.training.actor import bank_on_ray

    notes = folder / "notes"
    notes.mkdir(parents=True)
    config = configuration.load(Path("demo.yaml"), [*settings(data, cluster.address), *extra])
    over = threading.Event()
    keeper = threading.Thread(target=keep_nodes, args=(cluster, nodes, notes, over))
    keeper.start()
    began = time.time()
    try:
        with (
            mock.patch.multiple(group, **watched(group, notes, gated=bool(extra))),
            mock.patch.object(driver, "bank_on_ray", placed(bank_on_ray, notes)),
        ):
            driver.train(config, folder / "run", sys.argv)
    finally:
        over.set()
        keeper.join()
    state = checkpoint.load(checkpoint.find(folder / "run"))
    return {
        "hash": checkpoint.content_hash(state),
        "epochs": _epochs(notes),
        "lines": len(list(runlog.read_metrics(folder / "run"))),
        "decoded beside their worker": _beside(notes),
        "bank with the driver": (notes / "bank").read_text() == (notes / "driver").read_text(),
        "seconds": time.time() - began,
    }


def _epochs(notes: Path) -> list[dict[str, int]]:
    """Per epoch, the workers that began it last and the number of their nodes."""
    places = [json.loads(line) for line in (notes / "places").read_text().splitlines()]
    result = []
    for epoch in range(len(WORKERS)):
        own = [place for place in places if place["epoch"] == epoch]
        workers = own[-1]["workers"]
        nodes = {place["node"] for place in own if place["workers"] == workers}
        result.append({"epoch": epoch, "workers": workers, "nodes": len(nodes)})
    return result


def _beside(notes: Path) -> float:
    """Share of the blocks that were decoded on a node where their rank trained."""
    places, decoded = (
        [json.loads(line) for line in (notes / name).read_text().splitlines()]
        for name in ("places", "decoded")
    )
    known = {(place["rank"], place["node"]) for place in places}
    return sum((block["rank"], block["node"]) in known for block in decoded) / len(decoded)


def main() -> None:
    """Both runs on one cluster, which this script starts and ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    os.environ |= {
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "RAY_AUTH_MODE": "disabled",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    }
    from ray.cluster_utils import Cluster  # reads the environment

    with tempfile.TemporaryDirectory(prefix="e", dir="/tmp", ignore_cleanup_errors=True) as name:
        synthetic.write(Path(name) / "identities", num_identities=10, seed=4, height=32)
        cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=False,  # else only the main thread could add a node
            head_node_args={
                "num_cpus": 2,
                "temp_dir": f"{name}/ray",
                "include_dashboard": False,
                "object_store_memory": 200 * 2**20,
            },
        )
        try:
            nodes, data = [gpu_node(cluster), gpu_node(cluster)], Path(name) / "identities"
            result = {"undisturbed": run(cluster, nodes, Path(name) / "0", data)}
            elastic = Path(name) / "1", data, "trainer.min_workers=1"
            result["nodes go and come"] = run(cluster, nodes, *elastic)
        finally:
            cluster.shutdown()
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1))
    for title, one in result.items():
        workers = ", ".join(f"{e['workers']} on {e['nodes']}" for e in one["epochs"])
        print(f"{title}: workers on nodes per epoch {workers}; {one['seconds']:.0f} s")
    equal = len({one["hash"] for one in result.values()}) == 1
    placed = all(one["bank with the driver"] for one in result.values())
    went = [e["workers"] for e in result["nodes go and come"]["epochs"]] == list(WORKERS)
    beside = all(one["decoded beside their worker"] == 1 for one in result.values())
    print(f"equal hashes: {equal}; the memory actor with the driver: {placed}; resized: {went}")
    print(f"every block decoded on the node of its worker: {beside}")
    sys.exit(not (equal and placed and went and beside))


if __name__ == "__main__":
    main()
