"""A batch that is cut holds, of every column, what belongs to the rows."""

from __future__ import annotations

import torch

from reid_core.types import Batch


def test_a_part_of_a_batch_has_every_column_of_its_rows_and_all_their_views() -> None:
    rows = torch.arange(6)
    batch = Batch(
        images=torch.arange(12).view(12, 1, 1, 1),  # two views of a row, side by side
        rows=rows,
        labels=rows + 10,
        captions=rows + 20,
        tokens=rows[:, None] + 30,
        planned=rows + 40,
        kind="joint",
    )
    part = batch.cut(slice(2, 4))
    assert part.images.flatten().tolist() == [4, 5, 6, 7]
    assert part.rows.tolist() == [2, 3]
    assert part.labels.tolist() == [12, 13]
    assert part.captions is not None
    assert part.captions.tolist() == [22, 23]
    assert part.tokens is not None
    assert part.tokens.tolist() == [[32], [33]]
    assert part.planned is not None
    assert part.planned.tolist() == [42, 43]
    assert part.kind == "joint"
    without = Batch(batch.images, rows, rows).cut(slice(0, 6))
    assert (without.captions, without.tokens, without.planned, without.kind) == (None,) * 3 + ("",)
