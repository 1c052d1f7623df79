"""Megatron-Core: its layers, its pipeline schedules, its gradient buffers and its distributed optimizer.

Weights and moments have our names: see `megatron_names`. Its optimizers wrap the one that the blueprint builds; norm and
clipping are ours, because Megatron-Core's wait for the device.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import UserError
from parallel.attention.pieces import within_documents
from parallel.attention.plan import encode
from parallel.batch import IGNORE, Batch
from parallel.compose import Fill
from parallel.engine.blueprint import Blueprint
from parallel.engine.megatron_names import Rows, parts, rows_of
from parallel.engine.parts import PartsEngine
from parallel.engine.protocol import State, StepResult
from parallel.engine.quiet import quietly
from parallel.gradients import clip
from parallel.layout import Layout
from parallel.mesh import Meshes
from parallel.rectangles import Rectangles
from parallel.region import region


def build(blueprint: Blueprint, meshes: Meshes, device: torch.device) -> "MegatronEngine":
    """Build this rank's stages of Megatron-Core's model.

    Raises:
        UserError: there is no GPU.
    """
    try:
        device = torch.device(torch.cuda.current_device())
    except (RuntimeError, AssertionError):
        raise UserError(
            "parallel.engine=megatron needs a GPU, and this machine has none: type parallel.engine=native"
        ) from None
    layout = Layout(**{axis: meshes.axes[axis].size() for axis in asdict(Layout())})
    with quietly():
        return MegatronEngine(blueprint, layout, meshes, device)


def _initialize(layout: Layout, chunks: int | None) -> None:
    """Megatron-Core's process groups, which are global, as is its random state, which nothing here draws from."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(layout.tensor, layout.pipeline, chunks)
    model_parallel_cuda_manual_seed(1)


@dataclass(frozen=True)
class _Held:
    """A parameter of this rank, and this rank's elements of its fp32 value."""

    model: nn.Parameter
    main: Tensor
    """flat or in the parameter's shape"""
    start: int
    """the number of its first element in the parameter"""
    rows: list[Rows]

    def parts(self, like_main: Tensor) -> dict[str, Rectangles]:
        """A tensor that is laid out as the fp32 value is (itself, or a moment), as parts of our parameters."""
        return parts(like_main.detach().view(-1), self.model.shape, self.start, self.rows)


class MegatronEngine(PartsEngine):
    """Runs Megatron-Core's schedule, clips, and steps its optimizer."""

    def __init__(self, blueprint: Blueprint, layout: Layout, meshes: Meshes, device: torch.device) -> None:
        from megatron.core.pipeline_parallel import get_forward_backward_func

        from parallel.engine.megatron_layers import transformer_config

        interleaved = layout.pipeline > 1 and blueprint.composition.pipeline_schedule == "interleaved"
        self._layout = layout
        self._chunks = blueprint.composition.virtual_stages if interleaved else None
        _initialize(layout, self._chunks)
        self._config = transformer_config(blueprint, layout)
        self._models: list[Any] = _models(self._config, blueprint, self._chunks, device)
        super().__init__(self._models, self, blueprint, meshes, device)
        self._names = {id(p): name for model in self._models for name, p in _local_names(model)}
        rank, shape = self.tensor_group.rank(), blueprint.shape
        self._rows = {key: rows_of(name, shape, layout.tensor, rank) for key, name in self._names.items()}
        parameters = [p for model in self._models for p in model.parameters()]
        for parameter in parameters:
            _mark(parameter, self._rows[id(parameter)][0].split_dim)
        self._wrapped = _wrap(self._models, self._config, blueprint)
        named = [(self._rows[id(p)][0].name, p) for p in parameters]
        self._optimizer = _optimizer(blueprint, named, self._wrapped)
        self._named_parameters = named
        self._held = [held for p in parameters for held in _held(self._optimizer, p, self._rows[id(p)])]
        self._run: Any = get_forward_backward_func()
        self._tokens = 1
        with torch.no_grad():
            for held in self._held:
                for name, rectangles in held.parts(held.main).items():
                    for offset, view in rectangles.parts:
                        blueprint.fill(name, view, offset, tuple(rectangles.shape))
        self._publish()

    def _schedule(self, batches: Sequence[Batch], *, backward: bool, loss: bool) -> list[Any]:
        """Run micro-batches; what the last stage found of each."""
        rows, sequence = batches[0].tokens_BS.shape
        data = [iter(batches) for _ in self._wrapped]
        found: list[Any] = self._run(
            forward_step_func=partial(self._forward_step, loss=loss),
            data_iterator=data if self._chunks else data[0],
            model=self._wrapped,
            num_microbatches=len(batches),
            seq_length=sequence,
            micro_batch_size=rows,
            forward_only=not backward,
        )
        return found

    def _forward_step(self, batches: Iterator[Batch], model: Any, *, loss: bool) -> tuple[Tensor, Callable[..., Any]]:
        batch = next(batches).to(self.device)
        pieces = encode(within_documents(batch.document_BS.cpu()))
        labels_BS = batch.targets_BS.clamp(min=0) if loss else None
        output = model(batch.tokens_BS, None, pieces, labels=labels_BS)
        return output, partial(self._sums, batch.targets_BS) if loss else self._as_it_is

    def _sums(self, targets_BS: Tensor, losses_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counted_BS = targets_BS != IGNORE
        total = (losses_BS.double() * counted_BS).sum()
        count = counted_BS.sum()
        sums = torch.stack((total, total, count.double())).detach()
        return total / self._tokens, count.int(), sums

    def _as_it_is(self, logits_BSV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        zero = torch.zeros((), device=self.device)
        return zero, zero.int(), logits_BSV

    def forward(self, batch: Batch, *, loss: bool) -> Tensor | None:
        """See `Runner`."""
        # The interleaved schedule wants as many micro-batches as ranks.
        repeated = [batch] * (self.pipeline_group.size() if self._chunks else 1)
        found = self._schedule(repeated, backward=False, loss=loss)
        return found[0] if found else None

    def train(self, batches: Sequence[Batch], tokens: int) -> Tensor:
        """See `Runner`."""
        self._tokens = tokens
        found = self._schedule(batches, backward=True, loss=True)
        return torch.stack(found).sum(dim=0)[1:] if found else torch.zeros(2, dtype=torch.float64, device=self.device)

    def train_step(self, batches: Sequence[Batch], *, learning_rate: float, tokens: int) -> StepResult:
        """See `Engine.train_step`."""
        for model in self._wrapped:
            model.train()
            model.zero_grad_buffer()
        self._optimizer.zero_grad()
        with region("forward_backward"):
            sums = self._over_ranks(self.train([self._local_part(batch) for batch in batches], tokens))
        with region("gradient_norm"):
            self._optimizer.prepare_grads()
            norm = self._clip()
        with region("optimizer"):
            base = self._optimizer.optimizer
            for group in base.param_groups:
                group["lr"] = learning_rate * group["lr_scale"]
            base.found_inf = (~norm.isfinite()).float()
            self._optimizer.step_with_ready_grads()
        return StepResult(sums[0] / tokens, norm)

    def _clip(self) -> Tensor:
        gradients = self._optimizer.get_main_grads_for_grad_norm()  # without those that other ranks count
        squares = torch.zeros((), device=self.device)
        if gradients:
            squares += torch.stack(torch._foreach_norm(gradients)).square().sum()
        dist.all_reduce(squares, group=self._optimizer.get_grad_stats_parallel_group())
        norm = squares.sqrt()
        clip([p.grad for p in self._optimizer.get_parameters() if p.grad is not None], norm, self.clip_norm)
        return norm

    def whole(self, name: str) -> Tensor:
        """See `Engine.whole`."""
        raise AssertionError(f"{name}: low precision is refused before a run starts")

    def include_all(self, fill: Fill) -> None:
        """See `Engine.include_all`."""
        assert not self.excluded

    def state(self, *, optimizer: bool = True) -> State:
        """See `Engine.state`."""
        state: dict[str, Any] = {}
        for held in self._held:
            for name, rectangles in held.parts(held.main).items():
                state[f"model.{name}"] = rectangles
            moments = self._optimizer.optimizer.state.get(held.main, {}) if optimizer else {}
            for key, value in moments.items():
                for name, rectangles in held.parts(held.main if key == "step" else value).items():
                    state[f"optimizer.{name}.{key}"] = value if key == "step" else rectangles
        return state

    def load(self, read: Callable[[State], None], *, optimizer: bool = True) -> None:
        """See `Engine.load`."""
        base = self._optimizer.optimizer
        if optimizer and any(held.main not in base.state for held in self._held):
            before = [held.main.grad for held in self._held]
            for held in self._held:
                held.main.grad = torch.zeros_like(held.main)
            for group in base.param_groups:
                group["lr"] = 0.0
            base.step()
            for held, gradient in zip(self._held, before, strict=True):
                held.main.grad = gradient
        read(self.state(optimizer=optimizer))
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        """Give the model the fp32 values. A collective."""
        if hasattr(self._optimizer, "_copy_main_params_to_model_params"):
            self._optimizer._copy_main_params_to_model_params()
        if self._distributed:
            for model in self._wrapped:
                model.start_param_sync(force_sync=True)

    @property
    def _distributed(self) -> bool:
        return bool(self._wrapped[0].ddp_config.use_distributed_optimizer)


def _models(config: Any, blueprint: Blueprint, chunks: int | None, device: torch.device) -> list[Any]:
    from megatron.core import parallel_state as state

    from parallel.engine.megatron_layers import gpt_model

    models = []
    for chunk in range(chunks or 1):
        stage = chunk if chunks else None
        first = state.is_pipeline_first_stage(ignore_virtual=stage is None, vp_stage=stage)
        last = state.is_pipeline_last_stage(ignore_virtual=stage is None, vp_stage=stage)
        model = gpt_model(config, blueprint, first=first, last=last, chunk=stage).to(device)
        models.append(model.to(blueprint.compute_dtype))
    return models


def _local_names(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Megatron-Core's names, with the numbers of layers in the whole model."""
    numbers = [layer.layer_number - 1 for layer in model.decoder.layers]
    for name, parameter in model.named_parameters():
        words = name.split(".")
        if words[:2] == ["decoder", "layers"]:
            words[2] = str(numbers[int(words[2])])
        yield ".".join(words), parameter


def _mark(parameter: nn.Parameter, dim: int | None) -> None:
    """Say whether tensor ranks divide a parameter: otherwise its gradient counts once in the norm."""
    parameter.tensor_model_parallel = dim is not None  # type: ignore[attr-defined]
    parameter.partition_dim = -1 if dim is None else dim  # type: ignore[attr-defined]
    parameter.partition_stride = 1  # type: ignore[attr-defined]


def _wrap(models: Sequence[Any], config: Any, blueprint: Blueprint) -> list[Any]:
    """The models with Megatron-Core's gradient buffers; in bf16 what goes in and comes out is cast."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.transformer.module import Float16Module

    overlap = torch.cuda.is_available() and blueprint.composition.pipeline_schedule != "interleaved"
    buffers = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlap,
        use_distributed_optimizer=blueprint.zero_stage == 1,
    )
    inner = [Float16Module(config, model) if config.bf16 else model for model in models]
    wrapped = [
        DistributedDataParallel(config, buffers, model, disable_bucketing=number > 0) for number, model in enumerate(inner)
    ]
    if overlap:
        config.no_sync_func = wrapped[0].no_sync

    def finish(chunks: Sequence[Any], tokens: Tensor | None, **others: Any) -> None:
        finalize_model_grads(chunks, None, **others)  # the objective is divided by the tokens already

    config.finalize_model_grads_func = finish
    config.no_sync_func = config.no_sync_func or nullcontext
    return wrapped


def _optimizer(blueprint: Blueprint, named: Sequence[tuple[str, nn.Parameter]], wrapped: Sequence[Any]) -> Any:
    """Megatron-Core's optimizer around the blueprint's."""
    from megatron.core import parallel_state as state
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer

    base: Any = blueprint.build_optimizer(named)
    bf16, distributed = blueprint.compute_dtype == torch.bfloat16, blueprint.zero_stage == 1
    config = OptimizerConfig(
        optimizer="adam",
        bf16=bf16,
        params_dtype=blueprint.compute_dtype,
        use_distributed_optimizer=distributed,
        clip_grad=blueprint.clip_norm,
    )
    optimizer: Any
    if distributed:
        optimizer = DistributedOptimizer(
            base,
            config,
            None,
            None,
            model_chunks=list(wrapped),
            per_model_buffers={number: model.buffers for number, model in enumerate(wrapped)},
            data_parallel_group=state.get_data_parallel_group(with_context_parallel=True),
            data_parallel_group_gloo=None,
            data_parallel_group_idx=state.get_model_parallel_group().rank(),
            distributed_optimizer_instance_id=0,
        )
        optimizer.grad_stats_parallel_group = dist.group.WORLD
    else:
        optimizer = Float16OptimizerWithFloat16Params(base, config, None, None) if bf16 else FP32Optimizer(base, config, None)
        optimizer.grad_stats_parallel_group = state.get_model_parallel_group()
    optimizer.tp_group = state.get_tensor_model_parallel_group()
    return optimizer


def _held(optimizer: Any, parameter: Any, rows: list[Rows]) -> Iterator[_Held]:
    """This rank's elements of a parameter, if it has any."""
    if hasattr(optimizer, "model_param_group_index_map"):
        place = optimizer.model_param_group_index_map.get(parameter)
        if place is None:
            return
        group, order = place
        main = optimizer.optimizer.param_groups[group]["params"][order]
        yield _Held(parameter, main, optimizer._get_model_param_range_map(parameter)["param"].start, rows)
    else:
        yield _Held(parameter, getattr(parameter, "main_param", parameter), 0, rows)
