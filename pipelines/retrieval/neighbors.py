"""Nearest rows of a LanceDB table: exact while that is fast, by quantized lists above.

Shapes: N rows, D their width, q sampled queries.

Approximate answers come from IVF-RQ (one bit per dimension after a random rotation; RaBitQ, Gao
and Long, SIGMOD 2024), and their exact products decide the order. How many lists are searched is
tuned on rows of the table.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.runs.console import say
from reid_core.knn.products import largest_in_batches

if TYPE_CHECKING:
    from lancedb.query import LanceQueryBuilder
    from lancedb.table import LanceTable

EXACT_UP_TO = 20_000  # rows that are multiplied exactly: some 20 ms at 512 numbers
_UNINDEXED = 0.2  # share of rows outside the index, searched exactly, before they are taken in
_MIN_BITS = 64  # so few signs say too little of a row: the lists then hold the rows themselves
_AT = 10  # recall is that of the first ten answers
_MARGIN = 0.02  # between the recall asked for and that of the sample it is tuned on
_SAMPLE_QUERIES = 100
_PROBES = (8, 16, 32, 64, 128, 256, 512, 1024)
_BATCH_BYTES = 8 * 2**20  # of the rows that are multiplied at a time; the database reads ahead
_SAME = 1e-5  # cosines so close are one: the database rounds its products in another order
_SHOWN_EVERY_S = 10.0
_MANY = 500_000  # rows whose index takes minutes
_REFINED = (5, 20, 50)  # candidates per answer whose exact products are taken


@dataclass(frozen=True)
class Tuning:
    """How an approximate search is done.

    Attributes:
        num_probes: lists that are searched; 0 where every search is exact.
        refined: candidates per answer whose exact products are taken.
        recall: share of the ten nearest rows that such a search returns.
    """

    num_probes: int = 0
    refined: int = 0
    recall: float = 1.0


def tuning(table: LanceTable) -> Tuning:
    """What `keep_indexed` has found for a table."""
    known = table.schema.field("vector").metadata or {}
    if b"num_probes" not in known:
        return Tuning()
    return Tuning(
        num_probes=int(known[b"num_probes"]),
        refined=int(known[b"refined"]),
        recall=float(known[b"recall"]),
    )


def query(
    table: LanceTable, vector: np.ndarray, *, exact: bool = False, how: Tuning | None = None
) -> LanceQueryBuilder:
    """A search by inner product, as LanceDB's query builder.

    Args:
        table: of unit rows.
        vector: (D,) unit row.
        exact: multiply all rows, also where there is an index.
        how: tuning to use; None for the table's own.
    """
    how = how or tuning(table)
    built = table.search(
        np.asarray(vector, dtype=np.float32), vector_column_name="vector"
    ).distance_type("dot")
    if exact or not how.num_probes:
        return built.bypass_vector_index()
    return built.nprobes(how.num_probes).refine_factor(how.refined)


def keep_indexed(table: LanceTable, *, recall: float) -> None:
    """Make the indexes that a table of this size needs, or take in what has grown outside them."""
    from lancedb.index import Bitmap, BTree

    names = {index.name: index for index in table.list_indices()}
    num_rows = table.count_rows()
    if "id_idx" not in names and num_rows:
        table.create_index("id", config=BTree())
        for column in ("modality", "camera"):
            table.create_index(column, config=Bitmap())
    if num_rows <= EXACT_UP_TO:
        return
    if "vector_idx" not in names:
        build(table, recall=recall)
        return
    stats = table.index_stats("vector_idx")
    if stats is not None and stats.num_unindexed_rows > _UNINDEXED * num_rows:
        table.optimize()
        _tune(table, recall=recall)


def build(table: LanceTable, *, recall: float) -> Tuning:
    """An index over all rows, tuned until the recall is reached."""
    from lancedb.index import IvfFlat, IvfRq

    num_rows = table.count_rows()
    if num_rows >= _MANY:
        say(f"an index over {num_rows:,} vectors is built, then its recall is measured")
    num_lists = 2 ** round(math.log2(math.sqrt(num_rows)))
    dim = table.schema.field("vector").type.list_size
    kind = IvfRq if dim >= _MIN_BITS else IvfFlat
    config = kind(distance_type="dot", num_partitions=num_lists, max_iterations=10, sample_rate=64)
    table.create_index("vector", config=config, replace=True)
    return _tune(table, recall=recall)


def _tune(table: LanceTable, *, recall: float) -> Tuning:
    """The fewest candidates and lists that reach a recall on sampled rows, kept in the table."""
    queries, names = _sampled(table)
    # the largest is a row's product with itself
    truth = largest_in_batches(queries, _all_rows(table), 1 + _AT)[:, 1:]
    target = min(recall + _MARGIN, 1.0)

    def tried(num_probes: int, refined: int) -> Tuning:
        how = Tuning(num_probes, refined)
        hits = [
            (_others(query(table, one, how=how), own) >= right[-1] - _SAME).sum()
            for one, own, right in zip(queries, names, truth, strict=True)
        ]
        return Tuning(num_probes, refined, float(sum(hits)) / truth.size)

    for num_probes in _PROBES:
        best = tried(num_probes, _REFINED[-1])
        if best.recall >= target:
            break
    fewer = (tried(best.num_probes, refined) for refined in _REFINED[:-1])
    return _keep(table, next((how for how in fewer if how.recall >= target), best))


def _keep(table: LanceTable, how: Tuning) -> Tuning:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.replace_field_metadata(
            "vector", {key: str(value) for key, value in vars(how).items()}
        )
    return how


def _sampled(table: LanceTable) -> tuple[np.ndarray, list[str]]:
    """Vectors (q, D) of evenly spread rows and their ids."""
    places = np.linspace(0, table.count_rows() - 1, _SAMPLE_QUERIES).astype(np.int64)
    rows = table.take_offsets(np.unique(places).tolist()).select(["id", "vector"]).to_arrow()
    dim = rows.schema.field("vector").type.list_size
    flat = rows["vector"].combine_chunks().flatten().to_numpy()
    return flat.reshape(-1, dim), rows["id"].to_pylist()


def _all_rows(table: LanceTable) -> Iterator[np.ndarray]:
    """The vectors (n, D) of a table, some at a time; says how it goes where that takes long."""
    dim, num_rows = table.schema.field("vector").type.list_size, table.count_rows()
    at_once, done, shown = max(1, _BATCH_BYTES // (4 * dim)), 0, time.monotonic()
    for batch in table.search().select(["vector"]).to_batches(at_once):
        yield batch["vector"].flatten().to_numpy().reshape(-1, dim)
        done += len(batch)
        if time.monotonic() - shown > _SHOWN_EVERY_S:
            shown = time.monotonic()
            say(f"the recall is measured: {done:,} of {num_rows:,} vectors compared")


def _others(built: LanceQueryBuilder, own: str) -> np.ndarray:
    """Cosines of the first ten answers, the row itself left out."""
    result = built.limit(_AT + 1).select(["id", "_distance"]).to_arrow()
    others = np.array([name != own for name in result["id"].to_pylist()], dtype=bool)
    cosines: np.ndarray = 1 - result["_distance"].to_numpy()[others]
    return cosines[:_AT]
