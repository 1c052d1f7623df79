"""What a rank does in the tests of commands."""

from pathlib import Path

from parallel.mesh import World
from train.generate import continue_prompt, generation_config


def generate(world: World, run: str, layout: list[str], prompt: str, temperature: float, top_k: int, seed: int) -> str:
    config = generation_config(Path(run), layout)
    draw = {"tokens": 40, "temperature": temperature, "top_k": top_k, "seed": seed}
    return continue_prompt(Path(run), config, prompt, world, **draw)
