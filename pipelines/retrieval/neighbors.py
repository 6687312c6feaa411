"""Nearest rows of a LanceDB table: exact while that is fast, by quantized lists above.

Shapes: N rows, D their width, q sampled queries.

Approximate answers come from IVF-RQ (one bit per dimension after a random rotation; RaBitQ, Gao
and Long, SIGMOD 2024), and their exact products decide the order. How many lists are searched is
tuned on rows of the table, by the worst pair of modalities: the lists around a query mostly hold
its own.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.retrieval.gallery_rows import Filter
from pipelines.runs.console import say
from reid_core.knn.products import largest_in_batches
from reid_core.types import Modality

if TYPE_CHECKING:
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import LanceTable

log = logging.getLogger(__name__)
EXACT_UP_TO = 20_000  # rows that are multiplied exactly: some 20 ms at 512 numbers
_UNINDEXED = 0.2  # share of rows outside the index, searched exactly, before they are taken in
_MIN_BITS = 64  # so few signs say too little of a row: the lists then hold the rows themselves
_AT = 10  # recall is that of the first ten answers
_RECALL, _TARGET = 0.95, "target"  # unless it is said, and where a table keeps what was
_MARGIN = 0.02  # between the recall asked for and that of the sample it is tuned on
_SAMPLE_QUERIES = 100
_LOG2_PROBES = 3  # of the fewest lists that are searched
_BATCH_BYTES = 8 * 2**20  # of the rows that are multiplied at a time; the database reads ahead
_NAMES_AT_ONCE = 100_000  # modalities of rows that are read at a time
_SAME = 1e-5  # cosines so close are one: the database rounds its products in another order
_SHOWN_EVERY_S = 10.0
_FOREVER = timedelta(days=36_500)  # unless it is told an age, the database drops older versions
_MANY = 500_000  # rows whose index takes minutes
_REFINED = (5, 20, 50)  # candidates per answer whose exact products are taken


@dataclass(frozen=True)
class Tuning:
    """How an approximate search is done.

    Attributes:
        num_probes: lists that are searched; 0 where every search is exact.
        filtered_probes: the same under a filter, whose rows may lie in lists that are far from the
            query, as those of another modality do; 0 where such a search is exact.
        refined: candidates per answer whose exact products are taken.
        recall: share of the ten nearest rows that such a search returns: the smallest of queries of
            each modality, among all rows and among those of each modality.
    """

    num_probes: int = 0
    filtered_probes: int = 0
    refined: int = 0
    recall: float = 1.0

    def described(self) -> str:
        """In words."""
        if not self.num_probes:
            return "exact, recall@10 1.000"
        if not self.filtered_probes:
            return (
                f"{self.num_probes} lists, recall@10 {self.recall:.3f}; exact under a filter until "
                "`crossreid gallery tidy` tunes that too"
            )
        return (
            f"{self.num_probes} lists, {self.filtered_probes} under a filter, recall@10 "
            f"{self.recall:.3f} or better for each pair of modalities"
        )


def tuning(table: LanceTable) -> Tuning:
    """What `keep_indexed` has found for a table."""
    known = _metadata(table)
    return Tuning(
        num_probes=int(known.get("num_probes", 0)),
        filtered_probes=int(known.get("filtered_probes", 0)),
        refined=int(known.get("refined", 0)),
        recall=known.get("recall", 1.0),
    )


def query(
    table: LanceTable,
    vector: np.ndarray,
    *,
    where: str = "",
    exact: bool = False,
    how: Tuning | None = None,
) -> LanceVectorQueryBuilder:
    """A search by inner product, as LanceDB's query builder.

    Args:
        table: of unit rows.
        vector: (D,) unit row.
        where: condition that is applied before the search, "" for none.
        exact: multiply all rows, also where there is an index.
        how: tuning to use; None for the table's own.
    """
    how = how or tuning(table)
    built = table.search(
        np.asarray(vector, dtype=np.float32), vector_column_name="vector"
    ).distance_type("dot")
    if where:
        built = built.where(where, prefilter=True)
    num_probes = how.filtered_probes if where else how.num_probes
    if exact or not num_probes:
        return built.bypass_vector_index()
    return built.nprobes(num_probes).refine_factor(how.refined)


def nearest(
    table: LanceTable,
    vector: np.ndarray,
    count: int,
    *,
    where: str,
    columns: Sequence[str],
    exact: bool,
) -> pa.Table:
    """Some columns of the `count` nearest rows, best first; see `query`.

    Where the lists hold too few candidates, an approximate search goes on to further ones; if it
    still returns fewer rows, it is done again, exactly.
    """

    def rows(*, exact: bool) -> pa.Table:
        built = query(table, vector, where=where, exact=exact).maximum_nprobes(0)
        return built.limit(count).select(list(columns)).to_arrow()

    result = rows(exact=exact)
    return result if exact or len(result) == count else rows(exact=True)


def keep_indexed(table: LanceTable, *, recall: float | None = None) -> None:
    """Make the indexes that a table of this size needs, or take in what has grown outside them.

    No version of the table is dropped.

    Args:
        table: of unit rows.
        recall: that is tuned to, and kept for later; None for what is kept.
    """
    from lancedb.index import Bitmap, BTree

    is_new = recall is not None and recall != _metadata(table).get(_TARGET)
    if recall is not None and is_new:
        _keep(table, {_TARGET: recall})
    recall = _metadata(table).get(_TARGET, _RECALL)

    names = {index.name for index in table.list_indices()}
    num_rows = table.count_rows()
    for column, kind in (("id", BTree), ("modality", Bitmap), ("camera", Bitmap)):
        if num_rows and f"{column}_idx" not in names:
            table.create_index(column, config=kind())
    if num_rows <= EXACT_UP_TO:
        return
    if "vector_idx" not in names:
        build(table, recall=recall)
        return
    stats = table.index_stats("vector_idx")
    if stats is not None and stats.num_unindexed_rows > _UNINDEXED * num_rows:
        table.optimize(cleanup_older_than=_FOREVER)
    elif tuning(table).num_probes and not is_new:
        return
    _tune(table, recall=recall)


def tune_filters(table: LanceTable) -> None:
    """Tune an index that an older version has made, without a number of lists under a filter."""
    how = tuning(table)
    many = table.count_rows() > EXACT_UP_TO
    if many and how.num_probes and not how.filtered_probes:
        _tune(table, recall=_metadata(table).get(_TARGET, how.recall - _MARGIN))


def build(table: LanceTable, *, recall: float) -> Tuning:
    """An index over all rows, tuned until the recall is reached."""
    from lancedb.index import IvfFlat, IvfRq

    num_rows = table.count_rows()
    if num_rows >= _MANY:
        say(f"an index over {num_rows:,} vectors is built, then its recall is measured")
    dim = table.schema.field("vector").type.list_size
    kind = IvfRq if dim >= _MIN_BITS else IvfFlat
    config = kind(
        distance_type="dot",
        num_partitions=2 ** _log2_lists(num_rows),
        max_iterations=10,
        sample_rate=64,
    )
    table.create_index("vector", config=config, replace=True)
    return _tune(table, recall=recall)


def _log2_lists(num_rows: int) -> int:
    return round(math.log2(math.sqrt(num_rows)))


def _tune(table: LanceTable, *, recall: float) -> Tuning:
    """The fewest lists and candidates that reach a recall on sampled rows, kept in the table."""
    everywhere, filtered = _trials(table)
    target = min(recall + _MARGIN, 1.0)
    all_lists = max(_log2_lists(table.count_rows()), _LOG2_PROBES)

    def fewest(trials: list[_Trial], at_least: int) -> int:
        tried = (
            (power, _worst(trials, table, Tuning(2**power, 2**power, _REFINED[-1])))
            for power in range(at_least, all_lists)
        )
        return next((power for power, reached in tried if reached >= target), all_lists)

    power = fewest(everywhere, _LOG2_PROBES)
    probes = 2**power, 2 ** fewest(filtered, power)
    for refined in _REFINED:
        reached = _worst(everywhere + filtered, table, Tuning(*probes, refined))
        if reached >= target:
            break
    if reached < recall:
        log.warning(
            "approximate searches reach a recall@10 of %.3f, not the %g asked for, with %d "
            "candidates per answer from %d lists and %d under a filter",
            *(reached, recall, refined, *probes),
        )
    how = Tuning(*probes, refined, reached)
    _keep(table, vars(how))
    return how


@dataclass(frozen=True)
class _Trial:
    """Sampled queries of one modality, and what is right among the rows of one or of all.

    Attributes:
        queries: (q, D) unit rows.
        ids: of the queries.
        right: (q, k) largest cosines of other rows, falling.
        where: condition for the answers, "" for none.
    """

    queries: np.ndarray
    ids: Sequence[str]
    right: np.ndarray
    where: str = ""

    def recall(self, table: LanceTable, how: Tuning) -> float:
        """Share of what is right that searches return."""
        hits = [
            (_others(query(table, one, where=self.where, how=how), own) >= right[-1] - _SAME).sum()
            for one, own, right in zip(self.queries, self.ids, self.right, strict=True)
        ]
        return float(sum(hits)) / self.right.size


def _worst(trials: Iterable[_Trial], table: LanceTable, how: Tuning) -> float:
    return min((trial.recall(table, how) for trial in trials), default=1.0)


def _trials(table: LanceTable) -> tuple[list[_Trial], list[_Trial]]:
    """Queries of each modality: among all rows, and among those of each, where that is not exact.

    What is right is found in one pass over the table.
    """
    samples = _sampled(table)
    queries = np.concatenate([queries for queries, _ in samples.values()])
    ends = np.cumsum([len(ids) for _, ids in samples.values()])[:-1]
    nearest = {
        name: np.split(largest_in_batches(queries, _rows_of(table, name), 1 + _AT), ends)
        for name in samples
    }
    everywhere, filtered = [], []
    for number, (own, sample) in enumerate(samples.items()):
        # the largest is a row's product with itself
        right = {name: nearest[name][number][:, int(name == own) :][:, :_AT] for name in samples}
        merged = -np.sort(-np.concatenate(list(right.values()), axis=1), axis=1)
        everywhere.append(_Trial(*sample, merged[:, :_AT]))
        filtered += [
            _Trial(*sample, cosines, _only(name))
            for name, cosines in right.items()
            if len(samples) > 1 and table.count_rows(_only(name)) > EXACT_UP_TO
        ]
    return everywhere, filtered


def _only(modality: str) -> str:
    return Filter(modality=Modality(modality)).sql()


def _metadata(table: LanceTable) -> dict[str, float]:
    """Numbers that a table keeps about its vectors."""
    known: dict[bytes, bytes] = table.schema.field("vector").metadata or {}
    own = (_TARGET, *Tuning.__dataclass_fields__)
    return {name: float(known[name.encode()]) for name in own if name.encode() in known}


def _keep(table: LanceTable, numbers: Mapping[str, float]) -> None:
    known = table.schema.field("vector").metadata or {}
    before = {key.decode(): value.decode() for key, value in known.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.replace_field_metadata(
            "vector", before | {key: str(value) for key, value in numbers.items()}
        )


def _sampled(table: LanceTable) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Vectors (q, D) of evenly spread rows of each modality, and their ids."""
    counts = {str(name): table.count_rows(_only(name)) for name in sorted(Modality)}
    counts = {name: count for name, count in counts.items() if count}
    spread = {
        name: np.unique(np.linspace(0, count - 1, _SAMPLE_QUERIES // len(counts)).astype(np.int64))
        for name, count in counts.items()
    }
    samples = {}
    for name, places in _places(table, spread).items():
        rows = table.take_offsets(places).select(["id", "vector"]).to_arrow()
        dim = rows.schema.field("vector").type.list_size
        flat = rows["vector"].combine_chunks().flatten().to_numpy()
        samples[name] = flat.reshape(-1, dim), rows["id"].to_pylist()
    return samples


def _places(table: LanceTable, numbers: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """Offsets in the table of rows that are numbered within their modality, in one pass."""
    places: dict[str, list[int]] = {name: [] for name in numbers}
    passed, start = dict.fromkeys(numbers, 0), 0
    for batch in table.search().select(["modality"]).to_batches(_NAMES_AT_ONCE):
        for name, wanted in numbers.items():
            rows = np.flatnonzero(pc.equal(batch["modality"], name).to_numpy(zero_copy_only=False))
            within = wanted - passed[name]
            places[name] += (start + rows[within[(within >= 0) & (within < len(rows))]]).tolist()
            passed[name] += len(rows)
        start += len(batch)
    return places


def _rows_of(table: LanceTable, modality: str) -> Iterator[np.ndarray]:
    """The vectors (n, D) of a modality, some at a time; says how it goes where that takes long."""
    where = _only(modality)
    dim, num_rows = table.schema.field("vector").type.list_size, table.count_rows(where)
    at_once, done, shown = max(1, _BATCH_BYTES // (4 * dim)), 0, time.monotonic()
    for batch in table.search().where(where).select(["vector"]).to_batches(at_once):
        yield batch["vector"].flatten().to_numpy().reshape(-1, dim)
        done += len(batch)
        if time.monotonic() - shown > _SHOWN_EVERY_S:
            shown = time.monotonic()
            say(f"the recall is measured: {done:,} of {num_rows:,} {modality} vectors compared")


def _others(built: LanceVectorQueryBuilder, own: str) -> np.ndarray:
    """Cosines of the first ten answers, the row itself left out."""
    result = built.limit(_AT + 1).select(["id", "_distance"]).to_arrow()
    others = np.array([name != own for name in result["id"].to_pylist()], dtype=bool)
    cosines: np.ndarray = 1 - result["_distance"].to_numpy()[others]
    return cosines[:_AT]
