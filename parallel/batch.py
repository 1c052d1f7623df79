"""The batch format that every engine accepts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100
"""The target value of a position without a target (the default `ignore_index` of torch's cross entropy)."""


@dataclass(frozen=True)
class Batch:
    """B rows of S tokens.

    Attributes:
        tokens_BS: int64 input tokens.
        targets_BS: int64 next tokens; IGNORE at positions without a target.
        document_BS: int64 number of each token's document within its row, counting from 0; padding counts as one more
            document. Attention does not cross documents.
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
        """All rows of several batches, in order."""
        return Batch(
            torch.cat([batch.tokens_BS for batch in batches]),
            torch.cat([batch.targets_BS for batch in batches]),
            torch.cat([batch.document_BS for batch in batches]),
        )
