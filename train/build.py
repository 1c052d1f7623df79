"""From a configuration to the parts of a run: model, engine, schedule."""

import torch
from torch import Tensor, nn

from parallel.compose import compose
from parallel.engine.native import NativeEngine
from parallel.mesh import Meshes
from schedulers.wsd import WarmupStableDecay
from train.config import Config, ModelConfig, WsdScheduleConfig
from train.data.loader import Batch
from train.model.decoder import Decoder
from train.model.initialize import fill, init_std
from train.model.loss import loss_sums
from train.optimizer import build_optimizer

PARAMETER_DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def build_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The decoder on `device` (on the meta device it costs nothing), its values not set."""
    with device:
        return Decoder(config.shape, rope_theta=config.rope_theta, norm_eps=config.norm_eps).to(dtype)


def build_engine(config: Config, meshes: Meshes, device: torch.device) -> NativeEngine[Batch]:
    """Model and optimizer of this rank, composed, initialised and ready to step."""
    model = build_model(config.model, PARAMETER_DTYPES[config.train.precision], torch.device("meta"))

    def fill_slice(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
        std = init_std(name, config.model.num_layers, config.model.init_std)
        fill(local, offset, shape, name=name, seed=config.run.seed, std=std)

    compose(
        model,
        model.block_list(),
        model.tensor_roles(),
        meshes,
        device=device,
        compile_blocks=config.train.compile,
        bf16=config.train.precision == "bf16",
        fill=fill_slice,
    )

    def forward_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        on_device = batch.to(device)
        logits_BSV = model(on_device.tokens_BS, on_device.document_BS)
        return loss_sums(logits_BSV, on_device.targets_BS, config.train.z_loss)

    optimizer = build_optimizer(config.optimizer, model.named_parameters())
    return NativeEngine(model, optimizer, meshes, forward_loss, clip_norm=config.optimizer.clip_norm)


def build_schedule(config: Config) -> WarmupStableDecay:
    """The learning rate as a function of tokens."""
    schedule = config.schedule
    if isinstance(schedule, WsdScheduleConfig):
        floor, decay_tokens = schedule.floor, round(schedule.decay_fraction * config.total_tokens)
    else:
        floor, decay_tokens = schedule.peak, 0
    return WarmupStableDecay(
        peak=schedule.peak,
        floor=floor,
        warmup_tokens=schedule.warmup_tokens,
        decay_tokens=decay_tokens,
        total_tokens=config.total_tokens,
    )
