"""A run's newest weights as they are used: in full precision, quantized in training, or rounded to nearest afterwards."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError
from parallel.engine.protocol import Engine
from parallel.mesh import World, build_meshes
from quant.linear import SCALE, Precision
from quant.quantizer import fake_quantize
from train.build.engine import build_engine
from train.build.model import COMPUTE_DTYPES, PARAMETER_DTYPES
from train.build.quantization import Quantization, learned_scales
from train.checkpoint.manifest import Manifest
from train.config import Config
from train.config.resolve.quantization import low_precision_phase
from train.config.sections.quantization import NoQuantConfig, QatConfig
from train.folder.reading import load_run_config
from train.trained.checkpoint import newest_checkpoint, read_weights
from train.trained.rounding import rounding_of


@dataclass(frozen=True)
class Weights:
    """The newest checkpoint of a run, and how its matrices are used."""

    folder: Path
    """the checkpoint"""
    config: Config
    """the run's configuration, with the quant section that the weights are used with"""
    learned: bool
    """whether the checkpoint has learned scales; if not, they are computed from the weights"""

    @property
    def quant(self) -> QatConfig | None:
        """How the matrices are quantized; None: they are not."""
        return self.config.quant if isinstance(self.config.quant, QatConfig) else None

    def __str__(self) -> str:
        if self.quant is None:
            phase, tokens = (
                low_precision_phase(load_run_config(self.folder.parent.parent)),
                Manifest.read(self.folder).progress.tokens,
            )
            quantized_later = f", quantized from {phase.start:,} tokens on, this is at {tokens:,}" if phase is not None else ""
            return f"weights in full precision{quantized_later}"
        activations = f", inputs rounded to {self.quant.activation_bits} bits" if self.quant.activation_bits else ""
        return f"weights of {self.quant.bits:g} bits{'' if self.learned else ', rounded to nearest'}{activations}"

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that weights are cast to before they are used."""
        return COMPUTE_DTYPES[self.config.train.precision]

    def precision(self, parameter: str) -> Precision | None:
        """How a parameter is quantized; None: it is not. Norms never are."""
        module, _, key = parameter.rpartition(".")
        return (
            learned_scales(self.quant).precision(module)
            if self.quant is not None and not module.endswith("norm") and key
            else None
        )

    def parameter(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A whole parameter in full precision, from the checkpoint."""
        whole = torch.empty(shape, dtype=PARAMETER_DTYPES[self.config.train.precision])
        read_weights(self.folder, {f"model.{name}": whole})
        return whole

    def matrix(self, name: str, shape: tuple[int, ...], precision: Precision) -> tuple[Tensor, Tensor]:
        """A matrix in the compute dtype, and its scales."""
        weight = self.parameter(name, shape).to(self.compute_dtype)
        if not self.learned:
            return weight, precision.first_scale(weight)
        scale = f"{name.rpartition('.')[0]}.{SCALE}"
        return weight, self.parameter(scale, (shape[0], precision.groups(shape[1])))

    def used(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The whole parameter as the forward pass uses it; if quantized, in the compute dtype."""
        precision = self.precision(name)
        if precision is None:
            return self.parameter(name, shape)
        weight, scale = self.matrix(name, shape, precision)
        return fake_quantize(weight, scale, precision.bits, precision.scale_floor)


def weights_to_use(run: Path, config: Config, rounding: str | None = None) -> Weights:
    """The newest weights of a run. `config` is the run's configuration on the current layout. `rounding` ("bits=4,group=64")
    rounds full-precision weights to the nearest levels, with the initial scales of quantization-aware training.

    Raises:
        UserError: there are none, they are of a method that this package does not know, or they are to be rounded but are
            quantized already.
    """
    folder = newest_checkpoint(run)
    phase, tokens = low_precision_phase(load_run_config(run)), Manifest.read(folder).progress.tokens
    learned = phase is not None and phase.holds(tokens)
    if learned and not isinstance(config.quant, QatConfig):
        raise UserError(
            f"{run} was trained with quant={config.quant.name}, whose weights can be neither evaluated nor exported yet"
        )
    if rounding is None:
        quant = config.quant if learned else NoQuantConfig(name="none")
        return Weights(folder, dataclasses.replace(config, quant=quant), learned)
    if isinstance(config.quant, QatConfig) and learned:
        raise UserError(
            f"--quantize {rounding}: the weights of {run} are quantized already, to {config.quant.bits:g} bits; leave it out"
        )
    return Weights(folder, dataclasses.replace(config, quant=rounding_of(rounding)), learned)


def ready_engine(weights: Weights, world: World) -> Engine:
    """An engine that computes with the weights, on the layout of their configuration. A collective."""
    config = weights.config
    meshes = build_meshes(config.parallel.layout, world.device)
    engine = build_engine(config, meshes, world.device, fill=lambda *slice_of_parameter: None)
    quantization = Quantization(config, engine, weights.compute_dtype)
    if weights.learned:
        quantization.activate()
    engine.load(lambda state: read_weights(weights.folder, state, dist.group.WORLD), optimizer=False)
    if weights.quant is not None and not weights.learned:
        quantization.begin()
    return engine
