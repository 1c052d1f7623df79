"""`foretrain generate RUN --prompt TEXT`: continue a prompt with a trained model."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from train.errors import UserError

if TYPE_CHECKING:
    from torch import Generator, Tensor


def generate(
    run: Annotated[Path, typer.Argument(help="a finished run's folder, such as runs/demo")],
    prompt: Annotated[str, typer.Option(help="the text to continue")],
    tokens: Annotated[int, typer.Option(min=1, help="how many tokens to add at most")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="draw among the k likeliest only; 0: among all")] = 50,
    seed: Annotated[int, typer.Option(help="seed of the draws")] = 0,
) -> None:
    """Continue a prompt. Prints prompt and continuation."""
    print(continue_prompt(run, prompt, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed))


def continue_prompt(run: Path, prompt: str, *, tokens: int, temperature: float, top_k: int, seed: int) -> str:
    """The prompt and up to `tokens` more tokens, drawn from the run's model; it stops where the model ends the text.

    The model sees at most `train.sequence` tokens, the length it was trained on. Every step recomputes that window.

    Raises:
        UserError: `run` is not a finished run.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("the prompt is not UTF-8 text") from None
    import torch
    from tokenizers import Tokenizer

    from train.build import PARAMETER_DTYPES, build_model
    from train.run_directory import load_run_config
    from train.weights import load_weights

    config = load_run_config(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(config.model, PARAMETER_DTYPES[config.train.precision], torch.device("meta"))
    model.load_state_dict(load_weights(run), assign=True)
    model = model.to(device).eval()
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
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for _ in range(tokens):
            window_BS = torch.tensor([ids[-config.train.sequence :]], device=device)
            logits_V = model(window_BS, torch.zeros_like(window_BS))[0, -1]
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


def main(arguments: list[str]) -> int:
    """Parse the command line and run. Returns the exit code."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(generate)
    try:
        app(args=arguments, prog_name="foretrain generate", standalone_mode=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0
