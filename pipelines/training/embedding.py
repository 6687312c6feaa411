"""How a worker embeds: its share of some rows, and what all workers make of their shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.config.run import RunConfig
from pipelines.data import extract_features
from pipelines.distributed import collectives
from pipelines.distributed.sharded_rows import ShardedRows
from reid_core.models.folding import folded
from reid_core.stage import Encoder
from reid_core.types import Modality


@dataclass(frozen=True)
class Embedding:
    """One worker's part in embedding.

    Attributes:
        config: the run's configuration.
        device: of the models.
        readers: threads that decode what is embedded.
    """

    config: RunConfig
    device: torch.device
    readers: int = 1

    def to_embed(self, encoder: Encoder) -> Encoder:
        """The encoder as it embeds: faster, but in strict training bit for bit as it trains."""
        assert isinstance(encoder, nn.Module)
        return encoder.eval() if self.config.trainer.strict else folded(encoder)

    def share(
        self, head: extract_features.Head, inputs: extract_features.Rows, modality: Modality
    ) -> Tensor:
        """Features of this worker's contiguous share of a modality's rows, on the device."""
        rows = np.arange(inputs.num_rows(modality))
        return extract_features.embed(
            head,
            inputs,
            modality,
            rows[collectives.slice_of(len(rows))],
            batch_size=self.config.trainer.embed_batch,
            device=self.device,
            readers=self.readers,
            precision=self.config.trainer.precision,
        )

    def every_row(
        self, head: extract_features.Head, inputs: extract_features.Rows, modality: Modality
    ) -> ShardedRows:
        """Features of all rows of a modality, shared out over the workers."""
        return ShardedRows(self.share(head, inputs, modality), inputs.num_rows(modality))
