"""What a step trains on, as every engine takes it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100
"""The target of a position that has none (the default `ignore_index` of torch's cross entropy)."""


@dataclass(frozen=True)
class Batch:
    """Samples; B rows of S tokens.

    Attributes:
        tokens_BS: int64 input tokens.
        targets_BS: int64 next tokens, IGNORE where there is none.
        document_BS: int64 number of the document within the row: 0 for the first, one more behind every document border;
            padding counts as one more document. Attention may not cross from one number to another.
    """

    tokens_BS: Tensor
    targets_BS: Tensor
    document_BS: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return Batch(
            self.tokens_BS.to(device, non_blocking=True),
            self.targets_BS.to(device, non_blocking=True),
            self.document_BS.to(device, non_blocking=True),
        )

    @staticmethod
    def concatenate(batches: Sequence["Batch"]) -> "Batch":
        """All rows of several batches, in their order."""
        return Batch(
            torch.cat([batch.tokens_BS for batch in batches]),
            torch.cat([batch.targets_BS for batch in batches]),
            torch.cat([batch.document_BS for batch in batches]),
        )
