"""`train.dry_run=true`: the parameters of a run and each rank's share of them, without running it.

The model is built on the meta device, and the shares are computed from its shapes. So this works for every layout on any
machine within seconds. It allocates no tensors, and reads and writes no files.
"""

import math
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from rich.console import Console
from rich.table import Table

from common.words import ranges
from parallel.engine.names import DEFAULT
from parallel.names import stage_count
from parallel.plan.memory import rank_memory
from parallel.stages import cut, rank_of_stage
from parallel.tensor import SPLIT_DIMS
from train.build.model import PARAMETER_DTYPES, build_model
from train.build.quantization import method_of
from train.config import Config
from train.config.resolve.context import context_method
from train.config.resolve.microbatch import job_of, local_hardware


@dataclass(frozen=True)
class Share:
    """The share of each rank at one pipeline coordinate; if slices are uneven, the largest."""

    pipeline_rank: int
    layers: list[int]
    parameters: int
    largest: int
    """elements of the largest local slice"""


def shares(config: Config) -> list[Share]:
    """The shares for all pipeline coordinates, from the model's shapes and the roles of its submodules."""
    parallel, layout, method = config.parallel, config.parallel.layout, method_of(config.quant)
    # ZeRO's stages 1 and 2 leave the weights whole; the default engine divides them, as stage 3 does.
    divides = parallel.engine == DEFAULT or parallel.zero_stage == 3
    divisor = layout.shard * layout.context if divides else 1
    num_stages = stage_count(layout.pipeline, parallel.pipeline_schedule, parallel.virtual_stages)
    slices: dict[int, list[int]] = {rank: [] for rank in range(layout.pipeline)}
    layers: dict[int, list[int]] = {rank: [] for rank in range(layout.pipeline)}
    for stage in cut(config.model.shape, config.train.sequence, num_stages):
        rank = rank_of_stage(stage.index, layout.pipeline, parallel.pipeline_schedule)
        model = build_model(config.model, torch.float32, torch.device("meta"), stage)
        added = method.convert(model) if method is not None else ()
        layers[rank].extend(stage.layers)
        for name, parameter in model.named_parameters():
            module = name.rpartition(".")[0]
            role = next(role for pattern, role in model.tensor_roles().items() if fnmatchcase(module, pattern))
            sizes = list(parameter.shape)
            if (dim := SPLIT_DIMS.get(role)) is not None and sizes[dim] > 1:
                sizes[dim] //= layout.tensor
            if name not in added:  # the method's parameters are replicated over data ranks
                sizes[0] = -(-sizes[0] // divisor)
            slices[rank].append(math.prod(sizes))
    return [Share(rank, layers[rank], sum(slices[rank]), max(slices[rank])) for rank in slices]


def show(config: Config) -> None:
    """Print the parameter table and each rank's share."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    console.print(_parameter_table(config))
    console.print(_share_table(config))
    if (ranks := config.parallel.context) > 1:
        method, why = context_method(config)
        tokens = config.train.sequence // ranks
        print(f"{tokens:,} tokens of every sequence on a rank, {method}, partition {config.parallel.context_partition} ({why})")


def _parameter_table(config: Config) -> Table:
    shape = config.model.shape
    kinds: Counter[str] = Counter()
    for name, parameter in build_model(config.model, torch.float32, torch.device("meta")).named_parameters():
        words = name.split(".")
        kinds[" ".join(words[2:3]) if words[0] == "blocks" else words[0]] += parameter.numel()
    table = Table("part", "parameters", "share", title=f"{shape.parameters:,} parameters, {shape.num_layers} layers")
    for kind, count in kinds.items():
        part = f"{kind} ({shape.num_layers} layers)" if kind not in ("embedding", "norm", "head") else kind
        table.add_row(part, f"{count:,}", f"{100 * count / shape.parameters:.1f} %")
    return table


def _share_table(config: Config) -> Table:
    layout = config.parallel.layout
    weight_bytes = PARAMETER_DTYPES[config.train.precision].itemsize
    per_coordinate = layout.world_size // layout.pipeline
    title = f"{layout}: {layout.world_size} processes, {config.accumulation} micro-batches a step"
    columns = ("ranks", "layers", "parameters", "weights", "gradients", "optimizer state", "together", "peak, predicted")
    table = Table(*columns, title=title)
    job = job_of(config, local_hardware(layout.world_size, config.train.device))
    for share in shares(config):
        first = share.pipeline_rank * per_coordinate
        predicted = rank_memory(job, share.pipeline_rank)
        weights = share.parameters * weight_bytes
        held = [weights, weights, 2 * weights]
        if config.parallel.engine != DEFAULT:  # whose master weights and buffers the planner knows
            held = [int(predicted[part]) for part in ("weights", "gradients", "optimizer")]
        table.add_row(
            f"{first}-{first + per_coordinate - 1}" if per_coordinate > 1 else str(first),
            ranges(share.layers),
            f"{share.parameters:,}",
            *(_gib(size) for size in (*held, sum(held), int(predicted["total"]))),
        )
    return table


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**27 else f"{size / 2**20:,.2f} MiB"
