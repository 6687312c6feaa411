"""Bad calls from Python: an error of ours that names the argument, not a library's.

Each line is a call; the text is what its message must hold.
"""

from __future__ import annotations

import dis
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipelines
from pipelines.errors import UserError
from reid_core import centroids, cluster, hungarian_pairs, retrieval_metrics
from reid_core.models.weight_files import read_weights
from tests.faults import ledger
from tests.pipelines.trained import draw_folder, save_run

ROWS = np.eye(12, 16, dtype=np.float32)
LABELS = np.repeat(np.arange(4), 3)
PIDS, OTHERS = np.arange(12) % 4, np.arange(16) % 4
ANY: Any = None


def with_row(value: float) -> np.ndarray:
    rows = ROWS.copy()
    rows[3] = value
    return rows


MATHEMATICS: list[tuple[Callable[[], object], str]] = [
    (lambda: cluster(with_row(np.nan)), "feature row 3"),
    (lambda: cluster(with_row(np.inf)), "feature row 3"),
    (lambda: cluster(with_row(0)), "feature row 3 is zero"),
    (lambda: cluster(ROWS * 7), "normalize the features"),
    (lambda: cluster(ROWS[:0]), "at least one row"),
    (lambda: cluster(ROWS[0]), "at least one row"),
    (lambda: cluster(np.array([["a"]])), "no array of numbers"),
    (lambda: cluster(ROWS, k1=0), "k is 0"),
    (lambda: cluster(ROWS, k1=ANY), "k is None"),
    (lambda: cluster(ROWS, k1=2.5), "k is 2.5"),  # type: ignore[arg-type]
    (lambda: cluster(ROWS, k2=0), "k2 is 0"),
    (lambda: cluster(ROWS, eps=float("nan")), "Jaccard distances lie in"),
    (lambda: cluster(ROWS, eps=2), "Jaccard distances lie in"),
    (lambda: cluster(ROWS, min_samples=0), "min_samples is 0"),
    (lambda: centroids(ROWS, LABELS[:5]), "for 12 rows"),
    (lambda: centroids(ROWS, LABELS - 3), "label -3"),
    (lambda: centroids(ROWS, LABELS * 2), "must be contiguous"),
    (lambda: centroids(ROWS, LABELS + 2**40), "must be contiguous"),
    (lambda: centroids(ROWS, LABELS.astype(float)), "no whole numbers"),
    (lambda: centroids(ROWS, LABELS.astype(str)), "no whole numbers"),
    (lambda: centroids(ROWS, LABELS.reshape(4, 3)), "for 12 rows"),
    (lambda: centroids(with_row(np.nan), LABELS), "label 1 is not finite"),
    (lambda: hungarian_pairs(ROWS, ROWS[:, :3]), "banks have shapes"),
    (lambda: hungarian_pairs(ROWS[0], ROWS[1]), "banks have shapes"),
    (lambda: hungarian_pairs(with_row(np.nan), ROWS), "not finite"),
    (lambda: retrieval_metrics(ROWS.T, PIDS, OTHERS), "it must be (queries, gallery)"),
    (lambda: retrieval_metrics(ROWS[0], PIDS[:1], OTHERS), "it must be (queries, gallery)"),
    (lambda: retrieval_metrics(with_row(np.nan), PIDS, OTHERS), "row 3 holds NaN"),
    (lambda: retrieval_metrics(ROWS.tolist(), PIDS, OTHERS), "no array"),  # type: ignore[arg-type]
    (lambda: retrieval_metrics(ROWS, PIDS.astype(str), OTHERS), "query_pids are no whole numbers"),
    (lambda: retrieval_metrics(ROWS, PIDS, OTHERS / 2), "gallery_pids are no whole numbers"),
    (lambda: retrieval_metrics(ROWS, PIDS, OTHERS, cmc=ANY), "cmc is None"),
    (lambda: read_weights(Path("/nowhere.pt")), "/nowhere.pt"),
]
SOUND = {"data.root": "/nowhere/set"}
PRODUCT: list[tuple[Callable[[Path], object], str]] = [
    (lambda run: pipelines.load_config("no-such"), "no configuration file"),
    (lambda run: pipelines.load_config(ANY), "recipe=None: give a path"),
    (lambda run: pipelines.load_config("demo.yaml", "seed=3"), "give a list of key=value"),
    (lambda run: pipelines.load_config("demo.yaml", ANY), "give a list of key=value"),
    (lambda run: pipelines.load_config("demo.yaml", {3: 4}), "keys are texts"),  # type: ignore[dict-item]
    (lambda run: pipelines.load_config("demo.yaml", {"a.b": 1}), "unknown key a"),
    (lambda run: pipelines.load_config("demo.yaml", SOUND | {"seed": ANY}), "seed: must be"),
    (lambda run: pipelines.train(ANY, out=run), "give what `load_config` returns"),
    (
        lambda run: pipelines.train(
            pipelines.load_config("demo.yaml", SOUND), out=run.parent / "new", backend="local"
        ),
        "/nowhere/set is not a folder",
    ),
    (
        lambda run: pipelines.train(
            pipelines.load_config("demo.yaml", SOUND), out=run.parent / "new", backend=ANY
        ),
        "choose ray or local",
    ),
    (lambda run: pipelines.evaluate("/nowhere"), "no checkpoint in /nowhere"),
    (lambda run: pipelines.evaluate(ANY), "checkpoint=None: give a path"),
    (lambda run: pipelines.evaluate(run, split="dev"), "choose test or val"),
    (lambda run: pipelines.evaluate(run, kind=ANY, root="/nowhere"), "--root PATH"),
    (lambda run: pipelines.evaluate(run, kind="regdb", trial=99), "data.trial"),
    (lambda run: pipelines.open_encoder("/nowhere"), "no checkpoint in /nowhere"),
    (lambda run: pipelines.open_encoder(run, space=ANY), "choose descriptor or joint"),
    (lambda run: pipelines.embed(run, "/nowhere", run.parent / "v"), "/nowhere does not exist"),
    (lambda run: pipelines.embed(run, run, run.parent / "v", dtype=ANY), "choose float16"),
    (lambda run: pipelines.embed(run, run, run.parent / "v", batch_size=0), "batch_size=0"),
    (
        lambda run: pipelines.embed(run, run, run.parent / "v", max_unreadable=float("nan")),
        "max_unreadable=nan",
    ),
    (lambda run: images(run, ["/nowhere.png"]), "/nowhere.png: No such image"),
    (lambda run: images(run, ["/tmp"]), "/tmp: Is a directory"),
    (lambda run: images(run, "a.png"), "give a list of paths"),
    (lambda run: images(run, [None]), "give a list of paths"),
    (lambda run: images(run, [np.zeros((3, 4, 4))]), "give a list of paths"),
    (lambda run: images(run, [run / "0.png"], "thermal"), "embeds visible and infrared"),
    (lambda run: images(run, [run / "0.png"], "text"), "embeds visible and infrared"),
]


def images(run: Path, paths: Any, modality: str = "visible") -> object:
    return pipelines.open_encoder(run).embed_images(paths, modality)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("python")
    draw_folder(root / "images", visible=1, infrared=1)
    return save_run(root / "run")


@pytest.mark.parametrize(
    ("call", "says"), MATHEMATICS, ids=lambda part: part if isinstance(part, str) else ""
)
def test_mathematics_names_what_is_wrong(call: Callable[[], object], says: str) -> None:
    assert answer(call, says) == says


@pytest.mark.parametrize(
    ("call", "says"), PRODUCT, ids=lambda part: part if isinstance(part, str) else ""
)
def test_a_bad_call_names_what_is_wrong(
    run: Path, call: Callable[[Path], object], says: str
) -> None:
    assert answer(lambda: call(run), says) == says


def answer(call: Callable[[], object], says: str) -> str:
    """The words that are wanted, where a `raise` of ours has them; else what came instead."""
    try:
        call()
    except (UserError, ValueError) as error:
        trace: Any = error.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        code = trace.tb_frame.f_code
        own = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
        outcome = "answered" if own and says in str(error) else "unclear"
        said = str(error)
    except Exception as error:
        outcome, said = "traceback", repr(error)
    else:
        outcome, said = "silent", ""
    ledger.note("bad calls from Python", outcome)
    return says if outcome == "answered" else f"{outcome}: {said}"
