"""`foretrain generate RUN --prompt TEXT [parallel.tensor=2 ...]`: continue a prompt with a trained model, on any layout."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import UserError
from parallel.environment import leave
from parallel.layout import Layout
from train.command import process_of, run_command
from train.config import Config
from train.run_directory import load_run_config

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from parallel.mesh import World


def generate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="a finished run's folder, such as runs/demo")],
    prompt: Annotated[str, typer.Option(help="the text to continue")],
    tokens: Annotated[int, typer.Option(min=1, help="how many tokens to add at most")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="draw among the k likeliest only; 0: among all")] = 50,
    seed: Annotated[int, typer.Option(help="seed of the draws")] = 0,
    layout: Annotated[
        list[str] | None, typer.Argument(help="where the model is too large for one process: parallel.tensor=2, ...")
    ] = None,
) -> None:
    """Continue a prompt. Prints prompt and continuation."""
    config = generation_config(run, layout or [])
    environment = process_of(context, config)
    from parallel.mesh import connect

    with connect(environment) as world:
        text = continue_prompt(run, config, prompt, world, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed)
        if world.rank == 0:
            print(text)


def generation_config(run: Path, layout: list[str]) -> Config:
    """The configuration of a run in the layout that `layout` asks for ("parallel.tensor=2", ...), a row at a time.

    Raises:
        UserError: `run` is not a run, or a word of `layout` is not an axis and its size.
    """
    sizes = {}
    for word in layout:
        key, _, size = word.partition("=")
        axis = key.removeprefix("parallel.")
        if not key.startswith("parallel.") or axis not in {field.name for field in dataclasses.fields(Layout)}:
            raise UserError(
                f"'{word}': here the axes of the layout can be set, such as parallel.tensor=2 or parallel.pipeline=2"
            )
        if not size.isdecimal() or int(size) < 1:
            raise UserError(f"'{word}': the size of an axis is a number from 1 up")
        sizes[axis] = int(size)
    config = load_run_config(run)
    axes: dict[str, Any] = {**dataclasses.asdict(Layout()), **sizes, "pipeline_schedule": "gpipe", "recompute": "none"}
    axes |= {"context_method": "auto", "context_partition": "zigzag"}  # another number of ranks may need another method
    parallel = dataclasses.replace(config.parallel, **axes)
    batch_tokens = config.train.sequence * parallel.layout.data_parallel
    train = dataclasses.replace(
        config.train, microbatch=1, batch_tokens=batch_tokens, batch_warmup_tokens=0, batch_warmup_start=None, compile=False
    )
    return dataclasses.replace(config, parallel=parallel, train=train)


def continue_prompt(
    run: Path, config: Config, prompt: str, world: "World", *, tokens: int, temperature: float, top_k: int, seed: int
) -> str:
    """The prompt and up to `tokens` more tokens, drawn from the run's model; it stops where the model ends the text.

    The model sees at most `train.sequence` tokens, the length it was trained on. Every step recomputes that window.
    Every rank of `world` draws the same tokens, whatever the layout of `config` (see `generation_config`).

    Raises:
        UserError: `run` is not a finished run.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("the prompt is not UTF-8 text") from None
    import torch
    from tokenizers import Tokenizer

    from train.use import ready_engine, weights_to_use

    engine = ready_engine(weights_to_use(run, config), world)
    try:
        tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        end_of_text = json.loads((run / "data.json").read_text(encoding="utf-8"))["end_of_text"]
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise UserError(f"the tokenizer of {run} cannot be read: {error!r}") from None
    # A text starts where another has ended, so an empty prompt starts from there.
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    ids = list(prompt_ids) or [end_of_text]
    start = len(ids)
    generator = torch.Generator(world.device).manual_seed(seed)
    for _ in range(tokens):
        logits_V = engine.next_token_logits(torch.tensor(ids[-config.train.sequence :]))
        next_id = _draw(logits_V, temperature, top_k, generator)
        if next_id == end_of_text:
            break
        ids.append(next_id)
    return str(tokenizer.decode(prompt_ids + ids[start:], skip_special_tokens=False))


def _draw(logits_V: "Tensor", temperature: float, top_k: int, generator: "Generator") -> int:
    import torch

    if temperature == 0.0:
        return int(logits_V.argmax())
    scaled_V = (logits_V.double() - logits_V.max()) / temperature  # however small the temperature, the largest stays 0
    if 0 < top_k < scaled_V.numel():
        scaled_V = scaled_V.masked_fill(scaled_V < scaled_V.topk(top_k).values[-1], float("-inf"))
    return int(torch.multinomial(scaled_V.softmax(dim=-1), 1, generator=generator))


def main(arguments: list[str], start: Callable[[int], int] | None = None) -> int:
    """Parse the command line and run. Returns the exit code.

    `start` runs this same command in so many processes, where the layout needs them, and returns its exit code.
    """
    return run_command(generate, arguments, start=start)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
