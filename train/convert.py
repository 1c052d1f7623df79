"""`foretrain convert FOLDER --out DIR`: weights of another framework's checkpoint in Hugging Face's format, from which a run
starts with `model.initial_weights`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.errors import UserError
from parallel.environment import leave
from train.command.frame import run_command
from train.model.architecture import Architecture, Multipliers, Rope
from train.model.huggingface import SINGLE, describe, places


def convert(
    folder: Annotated[Path, typer.Argument(help="the folder of another framework's checkpoint, see docs/engines.md")],
    out: Annotated[Path, typer.Option(help="the folder to write; it must be empty or not exist")],
) -> None:
    """Write the weights of another framework's newest checkpoint for model.initial_weights."""
    from safetensors.torch import save_file

    from parallel.engine.foreign import read
    from train.trained.output import json_bytes, output_folder

    folder = folder.expanduser()
    found = read(folder)
    if found.shape is None:
        described = folder / "config.json"
        if not described.is_file():
            raise UserError(
                f"{folder} does not say which model it is of: put the model's config.json (Hugging Face's format) beside its "
                f"files"
            )
        description = json.loads(described.read_text(encoding="utf-8"))
        tensors = dict(found.tensors)
    else:
        plain = Multipliers(embedding=1.0, residual=1.0, attention=found.shape.head_dim**-0.5, logit=1.0)
        rope = Rope(theta=found.rope_theta)
        architecture = Architecture(shape=found.shape, rope=rope, norm_eps=found.norm_eps, multipliers=plain)
        description = describe(architecture, init_std=0.02, end_of_text=0, sequence=found.sequence, dtype="float32")
        tensors = {place.name: found.tensors[name] for name, place in places(found.shape).items()}
    with output_folder(out) as temporary:
        (temporary / "config.json").write_bytes(json_bytes(description))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / SINGLE, {"format": "pt"})
    count = sum(tensor.numel() for tensor in tensors.values())
    print(f"{out}: {count:,} parameters of {found.what}. A run starts from them with model.initial_weights={out}")


def main(arguments: list[str]) -> int:
    """Parse the command line and run. Returns the exit code."""
    return run_command(convert, arguments)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
