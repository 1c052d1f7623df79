"""What the engines share: a rank has parts of a model, a runner runs micro-batches through them, groups sum the results."""

from collections.abc import Collection, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parallel.batch import Batch
from parallel.engine.blueprint import Blueprint
from parallel.engine.runner import Runner
from parallel.log_probabilities import log_probabilities
from parallel.mesh import Meshes


class PartsEngine:
    """Evaluates and answers with this rank's parts of a model. See `Engine` for its methods."""

    _named_parameters: Sequence[tuple[str, nn.Parameter]]

    def __init__(
        self, parts: Sequence[nn.Module], runner: Runner, blueprint: Blueprint, meshes: Meshes, device: torch.device
    ) -> None:
        self._parts, self.runner, self.device = parts, runner, device
        self.clip_norm = blueprint.clip_norm
        self.vocab_size = blueprint.shape.vocab_size
        self.context = blueprint.context
        self.data_group = meshes.data.get_group("data")
        self.tensor_group = meshes.parameters.get_group("tensor")
        self.context_group = meshes.axes.get_group("context")
        self.pipeline_group = meshes.axes.get_group("pipeline")
        self.pipelined = self.pipeline_group.size() > 1
        self.excluded: frozenset[str] = frozenset()

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> float:
        """See `Engine.evaluate`."""
        self._eval_mode()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            local = self._local_part(batch).to(self.device)
            of_batch = self.runner.forward(local, loss=True)
            if of_batch is not None:
                sums += of_batch[1:]
        cross_entropy, targets = self._over_ranks(sums).tolist()
        return float(cross_entropy / targets)

    @torch.no_grad()
    def next_token_logits(self, tokens_S: Tensor) -> Tensor:
        """See `Engine.next_token_logits`."""
        self._eval_mode()
        # The ranks must divide the sequence evenly. The padding comes after it, where causal attention does not look.
        divisor = self.tensor_group.size() * (self.context.divisor if self.context is not None else 1)
        tokens_BS = nn.functional.pad(tokens_S, (0, -tokens_S.shape[0] % divisor))[None]
        last_BS = torch.arange(tokens_BS.shape[1])[None] == tokens_S.shape[0] - 1  # passed as targets
        local = self._local_part(Batch(tokens_BS, last_BS, torch.zeros_like(tokens_BS))).to(self.device)
        local_BSV = self.runner.forward(local, loss=False)
        # Zeros except for this rank's part. The sum over ranks is complete, whichever ranks have the position, the last stage
        # and the slices of the vocabulary.
        logits_V = torch.zeros(self.vocab_size, dtype=torch.float64, device=self.device)
        if local_BSV is not None:
            for local_V in local_BSV[local.targets_BS]:
                logits_V[self.tensor_group.rank() * local_V.numel() :][: local_V.numel()] = local_V
        for group in (self.tensor_group, self.context_group, self.pipeline_group):
            dist.all_reduce(logits_V, group=group)
        return logits_V

    @torch.no_grad()
    def target_log_probabilities(self, batch: Batch) -> Tensor:
        """See `Engine.target_log_probabilities`."""
        self._eval_mode()
        local = self._local_part(batch).to(self.device)
        # Where this rank's tokens stand in the batch: places go the way of the tokens.
        place_BS = torch.arange(batch.tokens_BS.numel()).view_as(batch.tokens_BS)
        place_BS = self._local_part(Batch(place_BS, batch.targets_BS, batch.document_BS)).tokens_BS.to(self.device)
        scores_T = torch.zeros(batch.tokens_BS.numel(), dtype=torch.float64, device=self.device)
        local_BSV = self.runner.forward(local, loss=False)
        if local_BSV is not None:
            scores_T[place_BS.flatten()] = log_probabilities(
                local_BSV.flatten(0, 1), local.targets_BS.flatten(), self.tensor_group
            )
        dist.all_reduce(scores_T, group=self.pipeline_group)
        return scores_T.view_as(batch.tokens_BS)

    def named_parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        """See `Engine.named_parameters`."""
        return self._named_parameters

    def whole(self, name: str) -> Tensor:
        """See `Engine.whole`."""
        value = dict(self._named_parameters)[name].detach()
        return value.full_tensor() if isinstance(value, DTensor) else value

    def modules(self) -> Sequence[nn.Module]:
        """See `Engine.modules`."""
        return self._parts

    def exclude(self, names: Collection[str]) -> None:
        """See `Engine.exclude`."""
        self.excluded = frozenset(names)

    def _local_part(self, batch: Batch) -> Batch:
        return batch if self.context is None else self.context.take(batch)

    def _eval_mode(self) -> None:
        for part in self._parts:
            part.eval()

    def _over_ranks(self, sums: Tensor) -> Tensor:
        dist.all_reduce(sums, group=self.data_group)
        if self.pipelined:
            dist.all_reduce(sums, group=self.pipeline_group)
        return sums
