"""Builds the engine of a configuration from one blueprint, which has everything that the engine needs."""

from functools import partial

import torch

from parallel.attention import kernels
from parallel.compose import Composition, Fill
from parallel.context.protocol import ContextParallel
from parallel.engine import build
from parallel.engine.blueprint import Blueprint
from parallel.engine.protocol import Engine
from parallel.mesh import Meshes
from parallel.stages import Stage
from train.build.initial_weights import initial_values
from train.build.model import COMPUTE_DTYPES, PARAMETER_DTYPES, build_model
from train.build.optimizer import build_optimizer
from train.build.quantization import method_of
from train.config import Config
from train.config.resolve.context import context_method
from train.model.decoder import Decoder


def build_engine(config: Config, meshes: Meshes, device: torch.device, fill: Fill | None = None) -> Engine:
    """The engine of this rank, with model and optimizer, ready to step. `fill` writes the initial values; None: the run's.

    Raises:
        UserError: the device does not have the attention kernel that was asked for.

    Weights are in full precision or not according to `train.build.quantization.Quantization`.
    """
    kernels.use(config.train.attention, device.type, COMPUTE_DTYPES[config.train.precision])
    return build(config.parallel.engine, blueprint_of(config, meshes, fill or initial_values(config)), meshes, device)


def blueprint_of(config: Config, meshes: Meshes, fill: Fill) -> Blueprint:
    """The blueprint of a configuration's engine."""
    parallel, train, method = config.parallel, config.train, method_of(config.quant)
    dtype = PARAMETER_DTYPES[train.precision]

    def build_stage(stage: Stage) -> Decoder:
        return build_model(config.model, dtype, torch.device("meta"), stage, z_loss=train.z_loss)

    return Blueprint(
        shape=config.model.shape,
        sequence=train.sequence,
        microbatch=train.microbatch,
        composition=Composition(
            pipeline_schedule=parallel.pipeline_schedule,
            virtual_stages=parallel.virtual_stages,
            recompute=parallel.recompute,
            compile=train.compile,
            bf16=train.precision == "bf16",
        ),
        norm_eps=config.model.norm_eps,
        rope_theta=config.model.rope_theta,
        compute_dtype=COMPUTE_DTYPES[train.precision],
        build_stage=build_stage,
        convert=(lambda model: ()) if method is None else method.convert,
        fill=fill,
        context=_context(config, meshes),
        build_optimizer=partial(build_optimizer, config),
        clip_norm=config.optimizer.clip_norm,
        zero_stage=parallel.zero_stage,
        offload=parallel.offload,
        fused_optimizer=parallel.fused_optimizer,
        tied=("embedding.weight", *(method.tied("embedding") if method is not None else ()))
        if config.model.tie_embeddings
        else (),
    )


def _context(config: Config, meshes: Meshes) -> ContextParallel | None:
    """How this rank shares sequences with others; None if it does not."""
    if config.parallel.context == 1:
        return None
    method, _ = context_method(config)
    return ContextParallel(meshes.axes.get_group("context"), method, config.parallel.context_partition)
