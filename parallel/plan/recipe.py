"""What a framework keeps and how well it uses a machine: recipes as data.

A recipe (`configs/_recipes/*.yaml`) says which bytes a parameter has and which of them are divided, which activations a block
keeps, whether logits exist whole, how layers are cut into stages. Its `constants` are what cannot be derived: few, each with a
meaning and bounds, one set per kind of hardware, fitted by `foretrain layout check --fit-rows`.
"""

from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from common.errors import UserError
from common.words import nearest
from parallel.names import Recompute, ScheduleName

FOLDER = "_recipes"
Cut = Literal["even", "threshold", "balanced"]
"""How layers are dealt out to pipeline stages: `even`, the same number each (Megatron, DeepSpeed); `threshold`, close a stage
once its share of the cost is reached, the head counting as its FLOPs (nanotron); `balanced`, the least largest cost
(Foretrain)."""


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes per parameter on a rank, [whole on every data rank, divided over the data ranks that shard]."""

    weights: tuple[float, float]
    gradients: tuple[float, float]
    optimizer: tuple[float, float]
    reduction: tuple[float, float] = (0.0, 0.0)
    """communication buffers; none where there is one data rank"""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes that a block keeps per token for its backward pass, by what they are multiples of.

    The split is that of Korthikanti et al. (arXiv 2205.05198, section 4): `hidden` (10 of a block's 34 s b h bytes) is divided
    over tensor ranks only with sequence parallelism; the rest always is.
    """

    hidden: float
    query: float
    """per element of all query heads: the query, and the output projection's input"""
    key_value: float
    """per element of all key heads: key and value"""
    gelu: float
    swiglu: float
    """per element of ffn_size"""
    scores: float = 0.0
    """per query head and pair of tokens; 0 where attention is computed in tiles"""
    statistics: float = 0.0
    """per query head and token"""


@dataclass(frozen=True, kw_only=True)
class Constants:
    """How well a framework uses a kind of machine. Bounds and units stand in `BOUNDS`."""

    matmul_efficiency: float = 0.75
    matmul_half: float = 300.0
    attention_efficiency: float = 0.45
    traffic: float = 3.0
    node_efficiency: float = 0.7
    network_efficiency: float = 0.7
    network_decay: float = 0.2
    tensor_overlap: float = 0.3
    data_overlap: float = 0.7
    layer_seconds: float = 1e-3
    hop_seconds: float = 5e-5
    network_hop_seconds: float = 4e-3
    message_seconds: float = 1e-4
    step_seconds: float = 0.01
    activation_scale: float = 1.1
    gathered: float = 8.0
    slack_gib: float = 1.0
    reserve_gib: float = 3.0
    memory_spread: float = 0.1


BOUNDS: dict[str, tuple[float, float, str]] = {
    "matmul_efficiency": (0.3, 0.95, "share of the dense peak that a very large matrix product reaches"),
    "matmul_half": (20.0, 2000.0, "smallest side of a product at which it reaches half of that"),
    "attention_efficiency": (0.05, 0.9, "share of the dense peak that causal attention reaches"),
    "traffic": (0.5, 10.0, "bytes that pointwise operators move per byte a block keeps, forward and backward"),
    "node_efficiency": (0.1, 1.0, "share of a node's link that collectives reach"),
    "network_efficiency": (0.03, 1.0, "share of the network port that collectives reach"),
    "network_decay": (0.0, 1.5, "bandwidth between nodes falls as (nodes / 2) to the minus that"),
    "tensor_overlap": (0.0, 1.0, "share of tensor-parallel messages that hides behind products"),
    "data_overlap": (0.0, 1.0, "share of the gradients' reduction that may hide behind the last backward pass"),
    "layer_seconds": (1e-6, 2e-2, "host time for a block's launches, forward and backward: a micro-batch takes at least that"),
    "hop_seconds": (0.0, 1e-2, "host time per block and tensor rank for its collectives inside a node"),
    "network_hop_seconds": (0.0, 5e-2, "host time per block and further node of a tensor group"),
    "message_seconds": (0.0, 2.0, "latency of a message between pipeline stages"),
    "step_seconds": (0.0, 2.0, "what a step costs besides: clipping, logging, synchronisation"),
    "activation_scale": (0.7, 2.0, "allocated over counted activation bytes: fragmentation and what the count leaves out"),
    "gathered": (0.0, 80.0, "bytes per token and hidden element of buffers that hold whole sequences under tensor parallelism"),
    "slack_gib": (0.0, 6.0, "GiB that the allocator holds besides, context and communication buffers of small models included"),
    "reserve_gib": (0.0, 12.0, "GiB that a run cannot use: the driver's context, communication libraries, fragmentation"),
    "memory_spread": (0.01, 0.3, "relative error of predicted memory: in a search, what just fits counts less"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a framework keeps. Attributes as the YAML files have them."""

    name: str
    states: dict[int, States]
    """by ZeRO stage"""
    kept: dict[Recompute, Kept]
    """`none` and `selective`; under `full` a block keeps its input, `block_input` bytes per hidden element"""
    block_input: float
    logit_bytes: float
    """per token and word of the vocabulary, at the peak"""
    logit_chunk: int | None
    """tokens whose logits exist at a time; None: all of a micro-batch"""
    cut: Cut
    schedules: tuple[ScheduleName, ...]
    context: bool
    """whether it has context parallelism"""
    sequence_parallel: bool
    divided_messages: bool
    """whether tensor ranks send a part each of what passes between pipeline stages (Narayanan et al., section 4.1)"""
    flash: bool
    own: bool
    """Foretrain's own engine, whose memory is counted tensor by tensor (`own_memory.py`); `kept` then serves the time alone"""
    zero: int
    """the ZeRO stage unless a layout says another"""
    gradient_bytes: float
    """per parameter, in the reduction over data ranks"""
    weight_message_bytes: float
    gathers_behind_forward: bool
    """whether new weights (ZeRO 1 and 2) are gathered while the next step's first forward pass runs"""
    accumulation_traffic: float
    """bytes per parameter and micro-batch that adding up gradients reads and writes"""
    optimizer_traffic: float
    """bytes per parameter that an optimizer step reads and writes"""
    constants: dict[str, dict[str, Any]]
    """hardware -> constants; within, `fabrics`: state of the node's links -> constants that differ"""
    about: str = ""

    def constants_for(self, hardware: str, fabric: str | None = None) -> Constants:
        """The fitted constants for a machine; a machine without any has the recipe's `default`."""
        values = {**self.constants.get("default", {}), **self.constants.get(hardware, {})}
        fabrics = values.pop("fabrics", {})
        return replace(Constants(), **{**values, **(fabrics.get(fabric, {}) if fabric else {})})

    def fitted(self, hardware: str) -> bool:
        """Whether constants were fitted on rows of this machine."""
        return hardware in self.constants


@cache
def recipe_names() -> list[str]:
    """All recipes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in files("configs").joinpath(FOLDER).iterdir())


@cache
def load_recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in recipe_names():
        near = nearest(name, recipe_names())
        hint = f"; did you mean '{near}'?" if near else ""
        raise UserError(f"--recipe {name}: not known{hint} (known: {', '.join(recipe_names())})")
    values = yaml.safe_load(files("configs").joinpath(FOLDER, f"{name}.yaml").read_text("utf-8"))
    states = {
        stage: States(**{part: tuple(pair) for part, pair in parts.items()}) for stage, parts in values.pop("states").items()
    }
    kept = {level: Kept(**parts) for level, parts in values.pop("kept").items()}
    return Recipe(name=name, states=states, kept=kept, schedules=tuple(values.pop("schedules")), **values)


def clipped(constants: Constants) -> Constants:
    """The same with every value inside its bounds."""
    values = asdict(constants)
    return Constants(
        **{
            field.name: min(max(values[field.name], BOUNDS[field.name][0]), BOUNDS[field.name][1])
            for field in fields(constants)
        }
    )
