"""Nearest rows of a LanceDB table: exact while that is fast, by quantized lists above.

Shapes: N rows, D their width, q sampled queries.

Approximate answers come from IVF-RQ (one bit per dimension after a random rotation; RaBitQ, Gao
and Long, SIGMOD 2024), and their exact products decide the order. How many lists are searched is
tuned on rows of the table.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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

    num_lists = 2 ** round(math.log2(math.sqrt(table.count_rows())))
    dim = table.schema.field("vector").type.list_size
    kind = IvfRq if dim >= _MIN_BITS else IvfFlat
    config = kind(distance_type="dot", num_partitions=num_lists, max_iterations=10, sample_rate=64)
    table.create_index("vector", config=config, replace=True)
    return _tune(table, recall=recall)


def _tune(table: LanceTable, *, recall: float) -> Tuning:
    """The fewest candidates and lists that reach a recall on sampled rows, kept in the table."""
    queries, names = _sampled(table)
    truth = [
        _names(query(table, one, exact=True), own) for one, own in zip(queries, names, strict=True)
    ]
    target = min(recall + _MARGIN, 1.0)

    def tried(num_probes: int, refined: int) -> Tuning:
        how = Tuning(num_probes, refined)
        hits = [
            len(right & _names(query(table, one, how=how), own))
            for one, own, right in zip(queries, names, truth, strict=True)
        ]
        return Tuning(num_probes, refined, sum(hits) / sum(map(len, truth)))

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


def _names(built: LanceQueryBuilder, own: str) -> set[str]:
    """The first ten answers, the row itself left out."""
    result = built.limit(_AT + 1).select(["id", "_distance"]).to_arrow()["id"].to_pylist()
    return set([name for name in result if name != own][:_AT])
