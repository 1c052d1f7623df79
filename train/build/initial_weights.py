"""A run's initial weights: random, or from a folder in Hugging Face's format."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from parallel.compose import Fill
from train.build.quantization import method_of
from train.config import Config
from train.config.sections.model import ModelConfig
from train.model.huggingface import places, tensors
from train.model.initialize import fill, init_std


def initial_values(config: Config) -> Fill:
    """A function that fills slices with a run's initial weights: random, or those of `model.initial_weights`.

    Raises:
        UserError: the files of `model.initial_weights` cannot be read.
    """
    stored = None
    if config.model.initial_weights is not None:
        stored = stored_values(config.model, Path(config.model.initial_weights).expanduser())
    method = method_of(config.quant)

    def fill_slice(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if method is not None and method.owns(name):
            local.fill_(1.0)  # a placeholder: when the phase begins, the value is computed from the weights
        elif stored is not None:
            stored(name, local, offset, shape)
        else:
            std = init_std(name, config.model.num_layers, config.model.init_std, config.mup_width)
            fill(local, offset, shape, name=name, seed=config.run.seed, std=std)

    return fill_slice


def stored_values(model: ModelConfig, folder: Path) -> Fill:
    """A function that fills slices from a folder in Hugging Face's format, which must fit `model` (see
    `train.config.preconditions`).

    It reads only the slices, and opens only the files that have them.
    """
    stored, place_of, open_files = tensors(folder), places(model.shape), {}

    def fill_slice(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
        place = place_of[name]
        assert place.shape == shape
        if local.numel() == 0:
            return
        file = stored[place.name].file
        if file not in open_files:
            open_files[file] = safe_open(file, "pt")
        index = tuple(slice(start, start + size) for start, size in zip(offset, local.shape, strict=True))
        local.copy_(open_files[file].get_slice(place.name)[index])

    return fill_slice
