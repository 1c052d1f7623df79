"""Pipeline parallelism over torch.distributed.pipelining: how the stages of a model run.

Stage inputs and outputs are (microbatch, sequence, hidden) activations; under tensor parallelism each rank sends its part of
the sequence to the rank of the same tensor coordinate in the next stage.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from parallel.batch import Batch
from parallel.names import SINGLE_STAGE, ScheduleName
from parallel.stages import Part, rank_of_stage

_SCHEDULES: dict[str, Any] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}


class PipelineRunner:
    """Runs this rank's stages over the micro-batches of a step."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        num_stages: int,
        schedule: ScheduleName,
        group: dist.ProcessGroup,
        device: torch.device,
        tokens: Tensor,
        activation: Tensor,
        sums: Tensor,
    ) -> None:
        """`tokens`, `activation` and `sums` are meta tensors with the shapes and dtypes of one micro-batch: the input of the
        first stage, what stages pass on, the output of the last stage."""
        self.group = group
        self.parts = parts
        self.activation = activation
        self.sequence = tokens.shape[1]
        self._owners = [rank_of_stage(stage, group.size(), schedule) for stage in range(num_stages)]
        self.device = device
        self.has_first = any(part.stage.first for part in parts)
        self.has_last = any(part.stage.last for part in parts)
        self._tokens = 1
        self._sums: list[Tensor] = []
        self._stages = [
            PipelineStage(
                part.module,
                part.stage.index,
                num_stages,
                device,
                input_args=tokens if part.stage.first else activation,
                output_args=sums if part.stage.last else activation,
                group=group,
            )
            for part in parts
        ]
        self._name: ScheduleName = schedule
        self._schedule: Any = None
        self._microbatches = 0  # for which `_schedule` was built

    def _loss(self, sums: Tensor, targets_BS: Tensor) -> Tensor:
        """What torch differentiates. The last stage has seen the targets already."""
        self._sums.append(sums[1:].detach())
        return sums[0] / self._tokens

    def train(self, batches: Sequence[Batch], tokens: int) -> Tensor:
        """See `Runner`."""
        self._tokens = tokens
        schedule = self._schedule_of(len(batches))
        batch = Batch.concatenate(batches).to(self.device)
        self._sums.clear()
        inputs = (batch.tokens_BS,) if self.has_first else ()
        targets = batch.targets_BS if self.has_last else None
        schedule.step(*inputs, target=targets, document_BS=batch.document_BS, targets_BS=batch.targets_BS, return_outputs=False)
        return torch.stack(self._sums).sum(dim=0) if self._sums else torch.zeros(2, dtype=torch.float64, device=self.device)

    def _schedule_of(self, microbatches: int) -> Any:
        """torch's schedule has a fixed number of micro-batches, so it is built again when the batch grows."""
        if microbatches != self._microbatches:
            stages = self._stages[0] if self._name in SINGLE_STAGE else self._stages
            # The loss is already divided by the global token count, so gradients must not be scaled again.
            self._schedule = _SCHEDULES[self._name](stages, microbatches, loss_fn=self._loss, scale_grads=False)
            self._microbatches = microbatches
        return self._schedule

    def forward(self, batch: Batch, *, loss: bool) -> Tensor | None:
        """See `Runner`. Runs stage by stage: torch's V-shaped schedules cannot run a forward pass alone."""
        rows, sequence = batch.tokens_BS.shape
        last: Tensor | None = None
        output: Tensor | None = None
        for part in self.parts:
            stage, ours = part.stage.index, self.group.rank()
            if part.stage.first:
                inputs = batch.tokens_BS
            elif self._owners[stage - 1] == ours and output is not None:
                inputs = output
            else:
                part_of_sequence = sequence * self.activation.shape[1] // self.sequence
                shape = (rows, part_of_sequence, self.activation.shape[2])
                inputs = torch.empty(shape, dtype=self.activation.dtype, device=self.device)
                dist.recv(inputs, group=self.group, group_src=self._owners[stage - 1])
            output = part.module(inputs, document_BS=batch.document_BS, targets_BS=batch.targets_BS if loss else None)
            if part.stage.last:
                last = output
            elif self._owners[stage + 1] != ours:
                dist.send(output.contiguous(), group=self.group, group_dst=self._owners[stage + 1])
        return last
