"""DeepSpeed's ZeRO (Rajbhandari et al., arXiv 1910.02054), stages 1, 2 and 3, on our model.

The whole model is on every rank (under stage 3 its blocks while they compute); its ranks are the data ranks, context ranks
among them. ZeRO keeps fp32 weights, clips, and steps the optimizer that the blueprint builds. It averages gradients over ranks;
our objective is a sum, so it is multiplied by their number first.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.batch import Batch
from parallel.compose import Fill, StageModel
from parallel.engine.blueprint import Blueprint
from parallel.engine.parts import PartsEngine
from parallel.engine.protocol import State, StepResult
from parallel.engine.quiet import quietly
from parallel.engine.zero_parts import create_state, pieces, publish
from parallel.mesh import Meshes
from parallel.recompute import recompute_blocks
from parallel.region import region
from parallel.stages import cut

MOMENTS = ("exp_avg", "exp_avg_sq")
LARGEST_BUCKET = 500_000_000


def build(blueprint: Blueprint, meshes: Meshes, device: torch.device) -> "ZeroEngine":
    """Put the whole model under a ZeRO engine, and give it its initial values."""
    model = blueprint.build_stage(cut(blueprint.shape, blueprint.sequence, 1)[0])
    blueprint.convert(model)
    if blueprint.context is not None:
        model.share_sequences(blueprint.context)
    recompute_blocks(model.block_list(), blueprint.composition.recompute)
    with quietly():
        return ZeroEngine(model, blueprint, meshes, device)


def _library(device: torch.device) -> Any:
    """DeepSpeed without the compilation of its own all-reduce for the processes of a CPU: gloo has one."""
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))  # it refuses to start without, even as a single process
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _settings(blueprint: Blueprint, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration: gradients are added up and reduced in fp32, whatever the weights are."""
    elsewhere = {"device": "cpu", "pin_memory": device.type == "cuda"}
    zero: dict[str, Any] = {
        "stage": blueprint.zero_stage or 1,
        "overlap_comm": device.type == "cuda",
        # Elements of the buffer in which gradients are collected: it is there from the first step on, two GB by default.
        "reduce_bucket_size": min(LARGEST_BUCKET, blueprint.shape.parameters),
    }
    if blueprint.offload != "none":
        zero["offload_optimizer"] = elsewhere
    if blueprint.offload == "parameters":
        zero["offload_param"] = elsewhere
    return {
        "train_micro_batch_size_per_gpu": blueprint.microbatch,
        "gradient_accumulation_steps": 1,  # the engine says itself which micro-batch is the last
        "gradient_clipping": blueprint.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": blueprint.compute_dtype == torch.bfloat16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 2**62,
    }


class ZeroEngine(PartsEngine):
    """Runs micro-batches through a DeepSpeed engine, which reduces, clips and steps."""

    def __init__(self, model: StageModel, blueprint: Blueprint, meshes: Meshes, device: torch.device) -> None:
        super().__init__([model], self, blueprint, meshes, device)
        deepspeed = _library(device)
        settings = _settings(blueprint, device)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        optimizer: Any = blueprint.build_optimizer(list(model.named_parameters()))
        _materialise(deepspeed, model, settings, blueprint, device)
        made = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [made[names[id(parameter)]] for parameter in group["params"]]
        if blueprint.fused_optimizer:
            on_cpu = device.type == "cpu" or blueprint.offload != "none"
            optimizer = (deepspeed.ops.adam.DeepSpeedCPUAdam if on_cpu else deepspeed.ops.adam.FusedAdam)(
                optimizer.param_groups
            )
        self._engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)[0]
        self._zero: Any = self._engine.optimizer
        self._named_parameters = list(model.named_parameters())
        self._counts: dict[int, Tensor] = {}
        self._ranks = dist.get_world_size()
        self._pieces = list(pieces(self._zero, self._named_parameters, dist.get_rank()))
        with torch.no_grad():
            for piece in self._pieces:
                piece.fill(blueprint.fill)
        publish(self._zero)

    def train(self, batches: Sequence[Batch], tokens: int) -> Tensor:
        """See `Runner`."""
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for index, batch in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            sums = self.forward(batch.to(self.device), loss=True)
            self._engine.backward(sums[0] * self._ranks / tokens, scale_wrt_gas=False)
            total += sums[1:].detach()
        return total

    def forward(self, batch: Batch, *, loss: bool) -> Tensor:
        """See `Runner`."""
        output: Tensor = self._engine(batch.tokens_BS, batch.document_BS, batch.targets_BS if loss else None)
        return output

    def train_step(self, batches: Sequence[Batch], *, learning_rate: float, tokens: int) -> StepResult:
        """See `Engine.train_step`."""
        self._engine.train()
        with region("forward_backward"):
            sums = self._over_ranks(self.train([self._local_part(batch) for batch in batches], tokens))
        with region("optimizer"):
            for group in self._zero.optimizer.param_groups:
                group["lr"] = learning_rate * group["lr_scale"]
            self._engine.step()  # changes nothing if the norm is not finite
        norm = float("inf") if getattr(self._zero, "overflow", False) else self._engine.get_global_grad_norm()
        return StepResult(sums[0] / tokens, torch.as_tensor(norm, device=self.device))

    def whole(self, name: str) -> Tensor:
        """See `Engine.whole`."""
        from deepspeed.utils import safe_get_full_fp32_param

        value: Tensor = safe_get_full_fp32_param(dict(self._named_parameters)[name])
        return value.detach()

    @torch.no_grad()
    def include_all(self, fill: Fill) -> None:
        """See `Engine.include_all`."""
        shapes = {name: _shape(parameter) for name, parameter in self._named_parameters}
        for name in [name for name, _ in self._named_parameters if name in self.excluded]:
            # The value may take a collective of all ranks, so every rank works out the whole of it, and takes its piece.
            value = torch.empty(shapes[name], device=self.device)
            fill(name, value, (0,) * value.dim(), shapes[name])
            for piece in self._pieces:
                if piece.name == name:
                    piece.flat(piece.master).copy_(value.flatten()[piece.start : piece.start + piece.count])
                    for key, moment in self._zero.optimizer.state.get(piece.master, {}).items():
                        # The parameters of a method have groups of their own, so their steps begin together.
                        (moment if key == "step" else piece.flat(moment)).zero_()
        self.excluded = frozenset()
        publish(self._zero)

    def state(self, *, optimizer: bool = True) -> State:
        """See `Engine.state`."""
        state: State = {}
        for piece in self._pieces:
            if piece.name in self.excluded:
                continue
            state[f"model.{piece.name}"] = piece.part(piece.master)
            if optimizer:
                for key in MOMENTS:
                    if key in (moments := self._zero.optimizer.state.get(piece.master, {})):
                        state[f"optimizer.{piece.name}.{key}"] = piece.part(moments[key])
                if (steps := self._steps(piece.master)) is not None:
                    state[f"optimizer.{piece.name}.step"] = steps
        return state

    def _steps(self, master: Tensor) -> Tensor | None:
        """How many steps the optimizer has taken on a buffer, as torch's has it; DeepSpeed's count in Python's numbers."""
        holder = self._step_holder(master)
        if holder is None:
            return None
        count = holder["step"]
        if isinstance(count, Tensor):
            return count
        kept = self._counts.setdefault(id(master), torch.zeros(()))
        return kept.fill_(float(count))

    def _step_holder(self, master: Tensor) -> dict[str, Any] | None:
        """Where an optimizer counts: in the state of a buffer or, for all of a group, in the group."""
        base = self._zero.optimizer
        if "step" in base.state.get(master, {}):
            found: dict[str, Any] = base.state[master]
            return found
        return next((group for group in base.param_groups if "step" in group), None)

    def load(self, read: Callable[[State], None], *, optimizer: bool = True) -> None:
        """See `Engine.load`."""
        if optimizer and any(piece.master not in self._zero.optimizer.state for piece in self._pieces):
            create_state(self._zero)
        read(self.state(optimizer=optimizer))
        for piece in self._pieces if optimizer else ():
            holder, count = self._step_holder(piece.master), self._counts.get(id(piece.master))
            if holder is not None and count is not None:
                holder["step"] = int(count)
        publish(self._zero)


def _materialise(
    deepspeed: Any, model: StageModel, settings: dict[str, Any], blueprint: Blueprint, device: torch.device
) -> None:
    """Give the parameters memory, without values. Under stage 3 no rank ever holds more than a block of them whole."""
    dtype = blueprint.compute_dtype
    if settings["zero_optimization"]["stage"] < 3:
        model.to_empty(device=device).to(dtype)
        return
    blocks = model.block_list()
    for module in (*blocks, model):
        for name, parameter in list(module.named_parameters()):
            if parameter.is_meta:
                owner, _, key = name.rpartition(".")
                real = nn.Parameter(torch.zeros_like(parameter, device=device, dtype=dtype))
                module.get_submodule(owner).register_parameter(key, real)
        deepspeed.zero.Init(module=module, config_dict_or_path=settings, dtype=dtype)
    for name, buffer in list(model.named_buffers()):
        owner, _, key = name.rpartition(".")
        if buffer.is_meta:
            model.get_submodule(owner).register_buffer(key, torch.zeros_like(buffer, device=device))
    # The loss uses the head's weight, or the table, outside the module that has it.
    in_blocks = {id(parameter) for block in blocks for parameter in block.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in in_blocks:
            deepspeed.zero.register_external_parameter(model, parameter)


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
