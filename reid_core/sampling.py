"""Epoch plans: which rows stand in which global batch. Pure NumPy, one plan for all workers.

A plan depends on its arguments alone (a Philox generator keyed by seed and epoch), not on the
machine, the number of workers or what was drawn before. Two modalities take two seeds.
"""

from __future__ import annotations

import logging

import numpy as np

logger = logging.getLogger(__name__)

# Philox counters start at a word of their own for each purpose, so that plans and augmentation
# seeds of the same (seed, epoch) share no random number.
_PK_STREAM, _PROMPT_STREAM, _AUGMENTATION_STREAM = 1, 2, 3
_PAIRED_STREAM, _PARTNER_STREAM, _SHUFFLE_STREAM = 4, 5, 6


def pk_plan(
    labels: np.ndarray,
    *,
    num_clusters: int,
    num_instances: int,
    num_batches: int,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """P x K batches: P clusters without replacement per batch, K of their rows with replacement.

    Args:
        labels: (N,) int64 cluster of each row; rows of -1 are never drawn.
        num_clusters: P, clusters in one global batch.
        num_instances: K, rows per cluster.
        num_batches: global batches of the epoch.
        seed: key of the run and modality, 0 or above.
        epoch: 0 or above.

    Returns:
        int64 (num_batches, P * K) indices into `labels`; K consecutive rows share a cluster. With
        fewer than P clusters the shape stays: each batch goes through fresh permutations of the
        clusters that exist, and one warning says so.

    Raises:
        ValueError: all rows are outliers.

    Reference: CCLNet, stages 0 and 2, batches; ours where there are fewer clusters than P.
    """
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels[order], 0) :]
    if not len(order):
        raise ValueError(
            f"no cluster among {len(labels)} rows: all are outliers. Raise eps, lower min_samples,"
            " or lower k1 so that neighborhoods fit the number of images per identity"
        )
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rng = generator(seed, epoch, _PK_STREAM)
    if len(counts) < num_clusters:
        logger.warning(
            "batches ask for P=%d clusters but only %d exist: clusters repeat within a batch",
            num_clusters,
            len(counts),
        )
        chosen = _cycled(rng, len(counts), num_clusters, num_batches)
    else:
        chosen = _distinct(rng, len(counts), num_clusters, num_batches)
    shape = (*chosen.shape, num_instances)
    member = rng.integers(0, counts[chosen][:, :, None], size=shape)
    rows: np.ndarray = order[starts[chosen][:, :, None] + member]
    return rows.reshape(num_batches, -1)


def num_batches(num_rows_a: int, num_rows_b: int, *, num_clusters: int, num_instances: int) -> int:
    """Global batches of an epoch over two modalities.

    Args:
        num_rows_a, num_rows_b: rows with a cluster in each modality.
        num_clusters, num_instances: P and K.

    Returns:
        max(num_rows_a, num_rows_b) // (P * K) + 1.

    Reference: CCLNet, stages 0 and 2, iterations of an epoch.
    """
    return max(num_rows_a, num_rows_b) // (num_clusters * num_instances) + 1


def prompt_plan(
    num_a: int, num_b: int, *, batch_size: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Batches that go once through the larger of two sets, and keep up the smaller one.

    The larger set is permuted; the smaller one is permuted and topped up with random draws to the
    same length. An incomplete last batch is dropped (the authors train on it: 174 steps on
    SYSU-MM01 where ours are 173): batches that all workers share have one size. The permutation is
    fresh in each epoch, so no row is dropped for good. Where both sets are smaller than one batch,
    both are topped up to one batch.

    Args:
        num_a, num_b: sizes of the two sets, 1 or above.
        batch_size: rows per set in a global batch.
        seed, epoch: as in `pk_plan`.

    Returns:
        Two int64 (num_batches, batch_size) of positions below num_a and num_b.

    Raises:
        ValueError: an empty set.

    Reference: CCLNet, stage 1.
    """
    if num_a < 1 or num_b < 1:
        raise ValueError(
            f"prompt training needs clustered rows of both modalities, got {num_a} and {num_b}:"
            " all rows of a modality are outliers; raise eps or lower min_samples"
        )
    rng = generator(seed, epoch, _PROMPT_STREAM)
    length = max(num_a, num_b, batch_size)
    whole = length - length % batch_size
    return (
        _topped_up(rng, num_a, length)[:whole].reshape(-1, batch_size),
        _topped_up(rng, num_b, length)[:whole].reshape(-1, batch_size),
    )


def paired_pk_plan(
    labels_a: np.ndarray,
    labels_b: np.ndarray,
    *,
    num_classes: int,
    num_instances: int,
    num_batches: int,
    seed: int,
    epoch: int,
) -> tuple[np.ndarray, np.ndarray]:
    """P x K batches of two modalities with the same classes in the same places.

    Args:
        labels_a, labels_b: (N_a,) and (N_b,) int64 classes; rows of -1, and of a class that the
            other modality lacks, are never drawn.
        num_classes: P, classes in one global batch.
        num_instances: K, rows per class and modality.
        num_batches, seed, epoch: as in `pk_plan`.

    Returns:
        Two int64 (num_batches, P * K) of rows; place by place, both rows have one class.

    Raises:
        ValueError: the modalities share no class.

    Reference: CSDN, stage 3, batches (8 x 4).
    """
    plan = pk_plan(
        _shared_only(labels_a, labels_b),
        num_clusters=num_classes,
        num_instances=num_instances,
        num_batches=num_batches,
        seed=seed,
        epoch=epoch,
    )
    return plan, _partners(labels_b, labels_a[plan], seed=seed, epoch=epoch)


def paired_plan(
    labels_a: np.ndarray, labels_b: np.ndarray, *, batch_size: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Batches once through the larger of two modalities, each row with a partner of its class.

    The larger modality is permuted, and topped up with random rows to max(n) // batch_size + 1
    batches; partners are drawn at random, with replacement.

    Args:
        labels_a, labels_b: as in `paired_pk_plan`.
        batch_size: rows per modality in a global batch.
        seed, epoch: as in `pk_plan`.

    Returns:
        Two int64 (num_batches, batch_size) of rows; place by place, both rows have one class.

    Raises:
        ValueError: the modalities share no class.

    Reference: CSDN, stage 1, with every image in place of one random sample (`csdn.pool`).
    """
    kept_a = np.flatnonzero(_shared_only(labels_a, labels_b) >= 0)
    kept_b = np.flatnonzero(_shared_only(labels_b, labels_a) >= 0)
    larger = kept_a if len(kept_a) >= len(kept_b) else kept_b
    length = (len(larger) // batch_size + 1) * batch_size
    rng = generator(seed, epoch, _PAIRED_STREAM)
    rows = larger[_topped_up(rng, len(larger), length)].reshape(-1, batch_size)
    if larger is kept_a:
        return rows, _partners(labels_b, labels_a[rows], seed=seed, epoch=epoch)
    return _partners(labels_a, labels_b[rows], seed=seed, epoch=epoch), rows


def shuffled_batches(num_rows: int, *, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation cut into batches; what does not fill a last batch is left out this epoch.

    Returns:
        int64 (num_rows // batch_size, batch_size).

    Raises:
        ValueError: not one whole batch.

    Reference: CSDN, stages 1 and 2.
    """
    if num_rows < batch_size:
        raise ValueError(f"{num_rows} rows do not fill a batch of {batch_size}: lower batch_size")
    order = generator(seed, epoch, _SHUFFLE_STREAM).permutation(num_rows)
    return order[: num_rows - num_rows % batch_size].reshape(-1, batch_size)


def augmentation_seeds(shape: tuple[int, ...], *, seed: int, epoch: int) -> np.ndarray:
    """One augmentation seed for each place of a plan.

    Args:
        shape: of the plan.
        seed, epoch: as in `pk_plan`.

    Returns:
        uint64 array of that shape, uniform over all 64 bits.
    """
    bits = _philox(seed, epoch, _AUGMENTATION_STREAM)
    return bits.random_raw(int(np.prod(shape))).reshape(shape)


def _philox(seed: int, epoch: int, stream: int) -> np.random.Philox:
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], dtype=np.uint64))


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Random numbers of one purpose in one epoch; streams from 16 on are the methods' own."""
    return np.random.Generator(_philox(seed, epoch, stream))


def _shared_only(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The labels, -1 where no row of `others` has the same one."""
    shared = np.where(np.isin(labels, others), labels, -1)
    if shared.max(initial=-1) < 0:
        raise ValueError(
            f"no identity occurs in both modalities ({len(labels)} and {len(others)} images): "
            "paired batches need identities that were seen in both; check the identity labels"
        )
    return shared


def _partners(labels: np.ndarray, wanted: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """For each wanted class, in any shape, a random row of it; every class must have one."""
    order = np.argsort(labels, kind="stable")
    classes, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.searchsorted(classes, wanted)
    member = generator(seed, epoch, _PARTNER_STREAM).integers(0, counts[place])
    rows: np.ndarray = order[starts[place] + member]
    return rows


def _distinct(rng: np.random.Generator, total: int, num: int, num_draws: int) -> np.ndarray:
    """(num_draws, num) rows of distinct numbers below `total`, each set equally likely.

    Floyd's method, one column after the other for all rows at once: the candidate of a column is
    below `limit`; where it was taken before, `limit` itself is new.
    """
    chosen = np.empty((num_draws, num), dtype=np.int64)
    for column, limit in enumerate(range(total - num, total)):
        candidate = rng.integers(0, limit + 1, size=num_draws)
        taken = (chosen[:, :column] == candidate[:, None]).any(axis=1)
        chosen[:, column] = np.where(taken, limit, candidate)
    # Floyd's sets are uniform but their order is not: high numbers come late
    return rng.permuted(chosen, axis=1)


def _cycled(rng: np.random.Generator, total: int, num: int, num_draws: int) -> np.ndarray:
    """(num_draws, num) rows made of fresh permutations of all numbers below `total` < num."""
    rounds = -(-num // total)
    identity = np.broadcast_to(np.arange(total), (num_draws * rounds, total))
    return rng.permuted(identity, axis=1).reshape(num_draws, -1)[:, :num]


def _topped_up(rng: np.random.Generator, num: int, length: int) -> np.ndarray:
    """A permutation of `num` positions followed by random draws, `length` in all."""
    return np.concatenate([rng.permutation(num), rng.integers(0, num, size=length - num)])
