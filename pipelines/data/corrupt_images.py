"""Training images that become unreadable while a run goes on: replaced, counted, named.

The check before training leaves broken images out. What breaks afterwards must not end a night's
work, and must not pass unnoticed either: another image stands in, the epoch's log line counts it,
a warning names the file once, and beyond `data.max_unreadable` the run stops.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pipelines.data.inputs import Inputs
from pipelines.distributed import collectives
from pipelines.errors import UserError
from pipelines.runs.records import EpochLine
from pipelines.storage.shards import location
from reid_core.types import OUTLIER, Batch, Modality

_MAX_TRIES = 3
_SHOWN = 10


class CorruptImages:
    """One worker's view of the images that cannot be read, and of what stands in for them.

    Where all images are embedded there is no cluster yet: another image of the same given class
    stands in, or any one, always the same, so that the row is a copy of it in that pass. In the
    batches of an epoch, images of the same cluster do: see `pipelines.data.decode`.

    Args:
        inputs: the training rows.
        max_share: of them may be unreadable.
        identities: per modality (n,) given classes, None without.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        max_share: float,
        identities: Mapping[Modality, np.ndarray] | None = None,
    ) -> None:
        self._inputs, self._identities = inputs, identities
        rows = {m: inputs.num_rows(m) for m in inputs.paths}
        self._limit = max_share * sum(rows.values())
        self._broken = {m: np.zeros(n, dtype=bool) for m, n in rows.items()}
        self._told = {m: np.zeros(n, dtype=bool) for m, n in rows.items()}
        self._replaced = 0

    def num_rows(self, modality: Modality) -> int:
        """See `Inputs.num_rows`."""
        return self._inputs.num_rows(modality)

    def read(self, modality: Modality, rows: np.ndarray) -> np.ndarray:
        """See `Inputs.read`; other images take the places of unreadable ones.

        Raises:
            UserError: too many images cannot be read.
        """
        try:
            return self._inputs.read(modality, rows)
        except ValueError:
            return np.concatenate([self._read_one(modality, int(row)) for row in rows])

    def note(self, batches: Mapping[Modality, Batch]) -> None:
        """Count the replaced images of a step.

        Raises:
            UserError: nothing could stand in, or too many images cannot be read.
        """
        for m, batch in batches.items():
            if batch.planned is None:
                continue
            missing = batch.planned != OUTLIER
            alone = batch.planned[missing & (batch.planned == batch.rows)]
            if len(alone):
                raise UserError(
                    f"{self._path(m, int(alone[0]))} cannot be read, and no other image of its "
                    "cluster either that the epoch could take instead: restore the files, or "
                    "start a new run, which leaves them out"
                )
            self._replaced += int(missing.sum())
            self._broken[m][batch.planned[missing].numpy()] = True
        self._check()

    def end_epoch(self, device: torch.device) -> EpochLine:
        """Put together what all workers met; every worker must call it.

        Args:
            device: for the exchange.

        Returns:
            Entries of the epoch's log line: "replaced", places of batches in which another image
            stood, and "warnings" that name the files that were not named before.

        Raises:
            UserError: on every worker, too many images cannot be read.
        """
        counts = [torch.tensor([self._replaced]), *map(torch.from_numpy, self._broken.values())]
        flat = torch.cat([count.to(torch.int32) for count in counts])
        total, *rows = (
            collectives.sum_over_workers(flat.to(device))
            .cpu()
            .split([len(count) for count in counts])
        )
        self._replaced = 0
        self._broken = {m: n.numpy() > 0 for m, n in zip(self._broken, rows, strict=True)}
        self._check()
        new = [
            self._path(m, int(row))
            for m, broken in self._broken.items()
            for row in np.flatnonzero(broken & ~self._told[m])
        ]
        self._told = {m: broken.copy() for m, broken in self._broken.items()}
        return {"replaced": int(total), "warnings": [_warning(new)] if new else []}

    def _check(self) -> None:
        num = sum(int(broken.sum()) for broken in self._broken.values())
        if num > self._limit:
            names = [
                self._path(m, int(row)) for m, b in self._broken.items() for row in np.nonzero(b)[0]
            ]
            raise UserError(
                f"{num} training images cannot be read any more, more than data.max_unreadable "
                f"allows ({self._limit:.0f}):\n  {_listed(names)}\nrestore them, or raise the limit"
            )

    def _path(self, modality: Modality, row: int) -> str:
        return location(self._inputs.root / self._inputs.paths[modality][row])

    def _read_one(self, modality: Modality, row: int) -> np.ndarray:
        try:
            return self._inputs.read(modality, np.array([row]))
        except ValueError:
            self._broken[modality][row] = True
            self._check()
        others = self._stand_ins(modality, row)
        for other in others:
            try:
                return self._inputs.read(modality, np.array([other]))
            except ValueError:
                continue
        others_too = f"{len(others)} images that were tried in its place neither"
        if not len(others):
            others_too = "no other image may stand in its place"
        raise UserError(
            f"{self._path(modality, row)} cannot be read, and {others_too}: restore the files"
        )

    def _stand_ins(self, modality: Modality, row: int) -> np.ndarray:
        """Rows to try, in an order that is the same in every epoch."""
        candidates = np.arange(self.num_rows(modality))
        if self._identities is not None:
            candidates = np.flatnonzero(
                self._identities[modality] == self._identities[modality][row]
            )
        candidates = candidates[candidates != row]
        return np.random.default_rng(row).permutation(candidates)[:_MAX_TRIES]


def _warning(paths: list[str]) -> str:
    return (
        f"{len(paths)} training image(s) became unreadable and are replaced by others: "
        + _listed(paths)
    )


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
