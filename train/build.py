"""From a configuration to the parts of a run: model, engine, schedule."""

from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from parallel.compose import Composition, Fill, compose
from parallel.context.protocol import ContextParallel
from parallel.engine.native import LossSums, NativeEngine, WholeModelRunner
from parallel.mesh import Meshes
from parallel.pipeline import Part, PipelineRunner, Stage, stage_count
from train.config import Config, ModelConfig
from train.config.context import context_method
from train.config.sections import QatConfig
from train.huggingface import places, tensors
from train.model.decoder import Decoder, Multipliers
from train.model.initialize import fill, init_std
from train.model.loss import loss_sums
from train.optimizer import build_optimizer
from train.quantization import is_scale, quantize_stage

PARAMETER_DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def build_model(config: ModelConfig, dtype: torch.dtype, device: torch.device, stage: Stage | None = None) -> Decoder:
    """The decoder, or a stage of it, on `device` (on the meta device it costs nothing), its values not set."""
    stage = stage or Stage(0, range(config.num_layers), first=True, last=True)
    with device:
        return Decoder(
            config.shape,
            rope_theta=config.rope_theta,
            norm_eps=config.norm_eps,
            multipliers=Multipliers(
                embedding=config.embedding_multiplier,
                residual=config.residual_multiplier,
                attention=config.attention_multiplier,
                logit=config.logit_multiplier,
            ),
            layers=stage.layers,
            first=stage.first,
            last=stage.last,
        ).to(dtype)


def build_engine(config: Config, meshes: Meshes, device: torch.device, fill: Fill | None = None) -> NativeEngine:
    """Model and optimizer of this rank, composed, filled (with initial values, unless told otherwise) and ready to step.

    Where weights are to be quantized, `train.quantization.Quantization` says when.
    """
    context = _context(config, meshes)
    parts = build_parts(config, meshes, device, fill or initial_values(config), context)
    group = meshes.parameters.get_group("tensor")
    sums = partial(loss_sums, z_loss=config.train.z_loss, vocabulary_group=group if group.size() > 1 else None)
    return NativeEngine(
        parts,
        _pipeline_runner(config, parts, meshes, device, sums)
        if config.parallel.pipeline > 1
        else WholeModelRunner(parts[0].module, sums, device),
        sums,
        build_optimizer(config, [pair for part in parts for pair in part.module.named_parameters()]),
        meshes,
        device=device,
        clip_norm=config.optimizer.clip_norm,
        vocab_size=config.model.vocab_size,
        tied=("embedding.weight", *(["embedding.scale"] if isinstance(config.quant, QatConfig) else []))
        if config.model.tie_embeddings
        else (),
        context=context,
    )


def _context(config: Config, meshes: Meshes) -> ContextParallel | None:
    """How this rank shares sequences with others; None where it does not."""
    if config.parallel.context == 1:
        return None
    method, _ = context_method(config)
    return ContextParallel(meshes.axes.get_group("context"), method, config.parallel.context_partition)


def initial_values(config: Config) -> Fill:
    """Fills slices with the initial weights of a run: random ones, or those of `model.initial_weights`.

    Raises:
        UserError: the files of `model.initial_weights` cannot be read.
    """
    stored = None
    if config.model.initial_weights is not None:
        stored = stored_values(config.model, Path(config.model.initial_weights).expanduser())

    def fill_slice(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if is_scale(name):
            local.fill_(1.0)  # until the weights are quantized, and it is made from them
            return
        if stored is not None:
            stored(name, local, offset, shape)
            return
        std = init_std(name, config.model.num_layers, config.model.init_std, config.mup_width)
        fill(local, offset, shape, name=name, seed=config.run.seed, std=std)

    return fill_slice


def stored_values(model: ModelConfig, folder: Path) -> Fill:
    """Fills slices from a folder in Hugging Face's format, which fits `model` (see `train.huggingface.problems`).

    Reads no more than the slices, and opens no file without one.
    """
    found, names, opened = tensors(folder), places(model.shape), {}

    def fill_slice(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
        place = names[name]
        assert place.shape == shape
        if local.numel() == 0:
            return
        file = found[place.name].file
        if file not in opened:
            opened[file] = safe_open(file, "pt")
        index = tuple(slice(start, start + size) for start, size in zip(offset, local.shape, strict=True))
        local.copy_(opened[file].get_slice(place.name)[index])

    return fill_slice


def build_parts(
    config: Config, meshes: Meshes, device: torch.device, fill: Fill, context: ContextParallel | None = None
) -> list[Part]:
    """This rank's stages of the model, composed and filled."""
    dtype = PARAMETER_DTYPES[config.train.precision]

    def build_stage(stage: Stage) -> Decoder:
        return build_model(config.model, dtype, torch.device("meta"), stage)

    composition = Composition(
        pipeline_schedule=config.parallel.pipeline_schedule,
        virtual_stages=config.parallel.virtual_stages,
        recompute=config.parallel.recompute,
        compile=config.train.compile,
        bf16=config.train.precision == "bf16",
    )
    shape, sequence, quant = config.model.shape, config.train.sequence, config.quant
    quantize = {"quantize": partial(quantize_stage, quant)} if isinstance(quant, QatConfig) else {}
    return compose(shape, sequence, build_stage, meshes, composition, device=device, fill=fill, context=context, **quantize)


def _pipeline_runner(config: Config, parts: list[Part], meshes: Meshes, device: torch.device, sums: LossSums) -> PipelineRunner:
    """The runner of this rank's stages, told the sizes of what they pass on."""
    parallel, train, dtype = config.parallel, config.train, COMPUTE_DTYPES[config.train.precision]
    rows, sequence = train.microbatch, train.sequence // parallel.context

    def like(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)

    return PipelineRunner(
        parts,
        num_stages=stage_count(parallel.pipeline, parallel.pipeline_schedule, parallel.virtual_stages),
        schedule=parallel.pipeline_schedule,
        group=meshes.axes.get_group("pipeline"),
        device=device,
        tokens=like(rows, sequence, dtype=torch.int64),
        activation=like(rows, sequence // parallel.tensor, config.model.hidden_size),
        logits=like(rows, sequence, config.model.vocab_size // parallel.tensor),
        loss_sums=sums,
    )
