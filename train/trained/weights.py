"""A run's newest weights as they are used: in full precision, quantized in training, or rounded or cast afterwards."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError
from parallel.compose import Fill
from parallel.engine.protocol import Engine
from parallel.mesh import World, build_meshes
from quant.floats import cast
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
from train.trained.rounding import Cast, rounding_of


@dataclass(frozen=True)
class Weights:
    """The newest checkpoint of a run, and how its matrices are used."""

    folder: Path
    """the checkpoint"""
    config: Config
    """the run's configuration, with the quant section that the weights are used with"""
    learned: bool
    """whether the checkpoint has learned scales; if not, they are computed from the weights"""
    cast: Cast | None = None
    """what the weights are cast to in the end"""

    @property
    def quant(self) -> QatConfig | None:
        """How the matrices are quantized; None: they are not."""
        return self.config.quant if isinstance(self.config.quant, QatConfig) else None

    def __str__(self) -> str:
        return self._training if self.cast is None else f"{self._training}, {self.cast}"

    @property
    def _training(self) -> str:
        """How the weights came about."""
        if self.quant is None:
            trained = load_run_config(self.folder.parent.parent)
            phase, tokens = low_precision_phase(trained), Manifest.read(self.folder).progress.tokens
            if phase is None:
                return "weights in full precision"
            what = "quantized" if isinstance(trained.quant, QatConfig) else f"trained with quant={trained.quant.name}"
            until = "" if phase.holds(tokens) else f", this is at {tokens:,}"
            return f"weights in full precision, {what} from {phase.start:,} tokens on{until}"
        activations = f", inputs rounded to {self.quant.activation_bits} bits" if self.quant.activation_bits else ""
        return f"weights of {self.quant.bits:g} bits{'' if self.learned else ', rounded to nearest'}{activations}"

    @property
    def bits(self) -> float | None:
        """The width of the matrices; None: they are in full precision."""
        if self.cast is not None:
            return float(self.cast.form.bits)
        return None if self.quant is None else self.quant.bits

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that weights are cast to before they are used."""
        return COMPUTE_DTYPES[self.config.train.precision]

    def precision(self, parameter: str) -> Precision | None:
        """How a parameter is quantized; None: it is not. Norms and biases never are."""
        module, _, key = parameter.rpartition(".")
        return (
            learned_scales(self.quant).precision(module)
            if self.quant is not None and not module.endswith("norm") and key == "weight"
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
        """The whole parameter as the forward pass uses it; if quantized or cast, in the compute dtype."""
        precision = self.precision(name)
        if precision is None:
            used = self.parameter(name, shape)
        else:
            weight, scale = self.matrix(name, shape, precision)
            used = fake_quantize(weight, scale, precision.bits, precision.scale_floor)
        if self.cast is None or not self.cast.applies_to(name):
            return used
        return cast(used.to(self.compute_dtype), self.cast.form, self.cast.block)


def weights_to_use(run: Path, config: Config, rounding: str | None = None) -> Weights:
    """The newest weights of a run. `config` is the run's configuration on the current layout. `rounding` ("bits=4,group=64")
    rounds full-precision weights to the nearest levels, with the initial scales of quantization-aware training; or it casts
    ("format=e2m1") any weights to a small float.

    Raises:
        UserError: there are none, they are of a method that this package does not know, or they are to be rounded but are
            quantized already.
    """
    folder = newest_checkpoint(run)
    phase, tokens = low_precision_phase(load_run_config(run)), Manifest.read(folder).progress.tokens
    low = config.low_precision
    learned = phase is not None and phase.holds(tokens) and low is not None and low.stored_bits is not None
    if learned and not isinstance(config.quant, QatConfig):
        raise UserError(
            f"{run} was trained with quant={config.quant.name}, whose weights can be neither evaluated nor exported yet"
        )
    how = None if rounding is None else rounding_of(rounding)
    if not isinstance(how, QatConfig):
        quant = config.quant if learned else NoQuantConfig(name="none")
        if how is not None and isinstance(quant, QatConfig) and quant.activation_bits:
            raise UserError(
                f"--quantize {rounding}: {run} was trained with inputs of {quant.activation_bits} bits, which a cast of its "
                f"weights would leave out; leave --quantize out"
            )
        return Weights(folder, dataclasses.replace(config, quant=quant), learned, how)
    if isinstance(config.quant, QatConfig) and learned:
        raise UserError(
            f"--quantize {rounding}: the weights of {run} are quantized already, to {config.quant.bits:g} bits; leave it out"
        )
    return Weights(folder, dataclasses.replace(config, quant=how), learned)


def ready_engine(weights: Weights, world: World) -> Engine:
    """An engine that computes with the weights, on the layout of their configuration. A collective."""
    config = weights.config
    meshes = build_meshes(config.parallel.layout, world.device)
    if weights.cast is not None:
        return build_engine(dataclasses.replace(config, quant=NoQuantConfig(name="none")), meshes, world.device, _used(weights))
    engine = build_engine(config, meshes, world.device, fill=lambda *slice_of_parameter: None)
    quantization = Quantization(config, engine, weights.compute_dtype)
    if weights.learned:
        quantization.activate()
    engine.load(lambda state: read_weights(weights.folder, state, dist.group.WORLD), optimizer=False)
    if weights.quant is not None and not weights.learned:
        quantization.begin()
    return engine


def _used(weights: Weights) -> Fill:
    """Fills slices with the weights as they are used."""

    def fill_slice(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
        slices = tuple(slice(start, start + size) for start, size in zip(offset, local.shape, strict=True))
        local.copy_(weights.used(name, shape)[slices])

    return fill_slice
