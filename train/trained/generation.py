"""Generation: continue a prompt with a run's weights."""

from pathlib import Path

import torch
from torch import Generator, Tensor

from common.errors import UserError
from parallel.mesh import World
from train.config import Config
from train.trained.scoring import read_run_tokenizer
from train.trained.weights import ready_engine, weights_to_use


def continue_prompt(
    run: Path, config: Config, prompt: str, world: World, *, tokens: int, temperature: float, top_k: int, seed: int
) -> str:
    """The prompt and up to `tokens` more tokens, drawn from the run's model; it stops where the model ends the text.

    The model sees at most `train.sequence` tokens, the length it was trained on. Every step recomputes that window.
    Every rank of `world` draws the same tokens. `config` may have any layout (see `config_on_layout`).

    Raises:
        UserError: `run` is not a finished run.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("the prompt is not UTF-8 text") from None
    engine = ready_engine(weights_to_use(run, config), world)
    tokenizer, end_of_text = read_run_tokenizer(run)
    # In training a text follows the end of another, so an empty prompt starts from an end-of-text token.
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


def _draw(logits_V: Tensor, temperature: float, top_k: int, generator: Generator) -> int:
    if temperature == 0.0:
        return int(logits_V.argmax())
    scaled_V = (logits_V.double() - logits_V.max()) / temperature  # the maximum is 0, so no temperature overflows
    if 0 < top_k < scaled_V.numel():
        scaled_V = scaled_V.masked_fill(scaled_V < scaled_V.topk(top_k).values[-1], float("-inf"))
    return int(torch.multinomial(scaled_V.softmax(dim=-1), 1, generator=generator))
