"""Fixtures shared by the suite: one small generated tree, one local Ray.

The process that hands out tests reads this file too, so fixtures import what they need.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pipelines.config.run import RunConfig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests need Ray are begun first: two processes share the files (pytest-xdist)."""
    with_ray = {item.path for item in items if needs_ray(item)}
    items.sort(key=lambda item: item.path not in with_ray)


def needs_ray(item: pytest.Item) -> bool:
    """Whether a test or a fixture of it uses the local Ray."""
    return "local_ray" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two processes share the machine's cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SYSU-MM01 tree of 20 generated identities: 14 train, 2 val, 4 test. Read only."""
    from reid_core.datasets import synthetic

    root = tmp_path_factory.mktemp("identities") / "sysu"
    synthetic.write(root, num_identities=20, seed=5)
    return root


@pytest.fixture(scope="session")
def make_config(tree: Path) -> Callable[..., RunConfig]:
    """A configuration that trains all three stages on `tree` in seconds, plus overrides."""
    from pipelines.config import run as configuration
    from pipelines.config.overrides import apply

    def make(*overrides: str, root: Path = tree) -> RunConfig:
        stage = {
            "epochs": 1,
            "clusters_per_batch": 4,
            "instances": 4,
            "batches_per_epoch": 3,
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "cosine",
            "evaluate_every": 0,
        }
        content: dict[str, Any] = {
            "data": {"root": str(root)},
            "model": {
                "name": "crossreid-small",
                "pretrained": None,
                "height": 64,
                "width": 32,
            },
            "augmentation": {"pad": 2},
            "cclnet": {
                "clustering": {"k1": 8, "k2": 3},
                "swap": {"start_epoch": 0},
                "prepare": dict(stage),
                "prompts": {"epochs": 1, "batch_size": 32},
                "align": dict(stage),
            },
            "evaluation": {"calibrate": False},
            "trainer": {"num_workers": 2, "batches_per_block": 2, "max_failures": 0},
        }
        for override in overrides:
            apply(content, override)
        return configuration.validate(content, source="test")

    return make


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that need one, ended with the session; other Rays are left alone."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        ray.init(
            address="local",
            namespace="tests",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=200 * 2**20,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
