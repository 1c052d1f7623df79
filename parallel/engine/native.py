"""The default engine: PyTorch's own FSDP2, DTensor and pipelining under plain autograd."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from parallel.batch import Batch
from parallel.compose import Fill, compose
from parallel.engine.blueprint import Blueprint
from parallel.engine.protocol import StepResult
from parallel.engine.runner import Runner, WholeModelRunner
from parallel.gradients import align_gradients, clip, gradient_norm, sum_tied_gradients
from parallel.log_probabilities import log_probabilities
from parallel.mesh import Meshes
from parallel.names import stage_count
from parallel.region import region
from parallel.replicas import ReplicaSums
from parallel.shard import is_sharded, local_slice
from parallel.stages import Part


def build(blueprint: Blueprint, meshes: Meshes, device: torch.device) -> "NativeEngine":
    """Compose this rank's stages of the model and build an engine on them."""
    parts = compose(
        blueprint.shape,
        blueprint.sequence,
        blueprint.build_stage,
        meshes,
        blueprint.composition,
        device=device,
        fill=blueprint.fill,
        convert=blueprint.convert,
        context=blueprint.context,
    )
    replicas = None
    if meshes.data["data"].size() > 1 and not is_sharded(meshes.parameters, bf16=blueprint.composition.bf16):
        parameters = [parameter for part in parts for parameter in part.module.parameters()]
        replicas = ReplicaSums(parameters, meshes.parameters.get_group("replicate"))
    if meshes.axes["pipeline"].size() > 1:
        runner = _pipeline_runner(blueprint, parts, meshes, device)
    else:
        runner = WholeModelRunner(parts[0].module, device, replicas)
    return NativeEngine(parts, runner, replicas, blueprint, meshes, device)


def _pipeline_runner(blueprint: Blueprint, parts: list[Part], meshes: Meshes, device: torch.device) -> Runner:
    """The runner of this rank's stages, with the sizes of their inputs and outputs."""
    from parallel.pipeline import PipelineRunner  # torch's pipelining takes a second to import

    composition, shape, axes = blueprint.composition, blueprint.shape, meshes.axes
    rows, sequence = blueprint.microbatch, blueprint.sequence // axes["context"].size()
    tensor = axes["tensor"].size()

    def like(*sizes: int, dtype: torch.dtype = blueprint.compute_dtype) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)

    return PipelineRunner(
        parts,
        num_stages=stage_count(axes["pipeline"].size(), composition.pipeline_schedule, composition.virtual_stages),
        schedule=composition.pipeline_schedule,
        group=axes.get_group("pipeline"),
        device=device,
        tokens=like(rows, sequence, dtype=torch.int64),
        activation=like(rows, sequence // tensor, shape.hidden_size),
        sums=like(3, dtype=torch.float64),
    )


class NativeEngine:
    """Runs micro-batches, sums gradients over the data ranks, clips, steps."""

    def __init__(
        self,
        parts: Sequence[Part],
        runner: Runner,
        replicas: ReplicaSums | None,
        blueprint: Blueprint,
        meshes: Meshes,
        device: torch.device,
    ) -> None:
        self.parts = parts
        # Listed once: between forward passes FSDP may put gathered tensors in the place of parameters.
        self._named_parameters = [pair for part in parts for pair in part.module.named_parameters()]
        self.runner, self.replicas = runner, replicas
        self.optimizer = blueprint.build_optimizer(self._named_parameters)
        self.device = device
        self.clip_norm = blueprint.clip_norm
        self.vocab_size = blueprint.shape.vocab_size
        self.context = blueprint.context
        self.data_group = meshes.data.get_group("data")
        self.tensor_group = meshes.parameters.get_group("tensor")
        self.context_group = meshes.axes.get_group("context")
        self.pipeline_group = meshes.axes.get_group("pipeline")
        self.pipelined = self.pipeline_group.size() > 1
        self.excluded: frozenset[str] = frozenset()
        self.tied = {name: _tied_copies(parts, name) for name in blueprint.tied} if self.pipelined else {}
        # Stages in a loop: the other copy is at the other end of the pipeline. V shape: both copies are on the first rank.
        self.tied_peer = self.pipeline_group.size() - 1 if any(part.stage.first for part in parts) else 0

    def train_step(self, batches: Sequence[Batch], *, learning_rate: float, tokens: int) -> StepResult:
        """See `Engine.train_step`."""
        for part in self.parts:
            part.module.train()
        with region("forward_backward"):
            sums = self._over_ranks(self.runner.train([self._local_part(batch) for batch in batches], tokens))
        with region("gradient_norm"):
            norm = self._finish_gradients()
        with region("optimizer"):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate * group["lr_scale"]
            # If this is 1, torch's fused optimizers change nothing, and the host need not wait for the value.
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return StepResult(sums[0] / tokens, norm)

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

    def _local_part(self, batch: Batch) -> Batch:
        return batch if self.context is None else self.context.take(batch)

    def _eval_mode(self) -> None:
        for part in self.parts:
            part.module.eval()

    def named_parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        """See `Engine.named_parameters`."""
        return self._named_parameters

    def modules(self) -> Sequence[nn.Module]:
        """See `Engine.modules`."""
        return [part.module for part in self.parts]

    def exclude(self, names: Collection[str]) -> None:
        """See `Engine.exclude`."""
        self.excluded = frozenset(names)

    @torch.no_grad()
    def include_all(self, fill: Fill) -> None:
        """See `Engine.include_all`."""
        for name, parameter in self._named_parameters:
            if name in self.excluded:
                local, offset = local_slice(parameter)
                fill(name, local, offset, tuple(parameter.shape))
                for moment in self.optimizer.state.get(parameter, {}).values():  # left over from before a rollback
                    moment.zero_()
        self.excluded = frozenset()

    def state(self, *, optimizer: bool = True) -> dict[str, Tensor]:
        """See `Engine.state`."""
        state: dict[str, Tensor] = {}
        for name, parameter in self._included():
            state[f"model.{name}"] = parameter.detach()
            if optimizer:
                moments = self.optimizer.state[parameter]
                state |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
        return state

    def load(self, read: Callable[[dict[str, Tensor]], None], *, optimizer: bool = True) -> None:
        """See `Engine.load`."""
        if optimizer and any(parameter not in self.optimizer.state for _, parameter in self._included()):
            self._create_optimizer_state()
        read(self.state(optimizer=optimizer))
        # A rank with both the first and the last stage has two copies of a tied weight, of which `read` has filled the last.
        for name, (first, last) in self.tied.items():
            if first is None or last is None or name in self.excluded:
                continue
            with torch.no_grad():
                first.copy_(last)
            for key, value in self.optimizer.state.get(last, {}).items():
                self.optimizer.state[first][key].copy_(value)
        for part in self.parts:
            for module in part.module.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # parameters gathered before are out of date

    def _create_optimizer_state(self) -> None:
        """Take a step with zero gradients at learning rate 0, after which every optimizer has its whole state."""
        for _, parameter in self._included():
            parameter.grad = torch.zeros_like(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _included(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self._named_parameters if name not in self.excluded)

    def _over_ranks(self, sums: Tensor) -> Tensor:
        dist.all_reduce(sums, group=self.data_group)
        if self.pipelined:
            dist.all_reduce(sums, group=self.pipeline_group)
        return sums

    def _finish_gradients(self) -> Tensor:
        """Complete the gradients and clip them. Returns their norm before clipping, over all stages."""
        parameters = [parameter for _, parameter in self._named_parameters]
        if self.replicas is not None:
            self.replicas.finish()
        align_gradients(parameters)
        tied = [copies for name, copies in self.tied.items() if name not in self.excluded]
        for first, last in tied:
            sum_tied_gradients(first, last, self.pipeline_group, self.tied_peer)
        gradients = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
        # Both copies of a tied weight have the same gradient, which counts once.
        second = {id(last) for _, last in tied}
        counted = [gradient for parameter, gradient in gradients.items() if id(parameter) not in second]
        norm = gradient_norm(counted, self.device, 1 if self.replicas is None else self.replicas.group.size())
        clip(list(gradients.values()), norm, self.clip_norm)
        return norm


def _tied_copies(parts: Sequence[Part], name: str) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """This rank's copies of a tied parameter: (the first stage's, the last stage's)."""
    copies: Mapping[bool, nn.Parameter] = {
        part.stage.first: parameter
        for part in parts
        for parameter_name, parameter in part.module.named_parameters()
        if parameter_name == name
    }
    return copies.get(True), copies.get(False)
