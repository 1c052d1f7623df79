"""What a rank does in the tests of commands."""

import resource
from pathlib import Path

from parallel.mesh import World
from tests.support.console import on_rank
from train.trained.generation import continue_prompt
from train.trained.layout import config_on_layout


def generate(world: World, run: str, layout: list[str], prompt: str, temperature: float, top_k: int, seed: int) -> str:
    config = config_on_layout(Path(run), layout)
    draw = {"tokens": 40, "temperature": temperature, "top_k": top_k, "seed": seed}
    return continue_prompt(Path(run), config, prompt, world, **draw)


def with_full_disk(world: World, overrides: list[str], limit_bytes: int) -> tuple[int, str, str]:
    """What `python -m train` says and returns on this rank, where no file may grow beyond `limit_bytes`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    return on_rank(world, overrides)


def signalled_in(world: World, overrides: list[str], phase: str) -> tuple[int, str, str]:
    """What `python -m train` says and returns on this rank, where one rank is sent SIGTERM in the middle of `phase`."""
    import os
    import signal
    from unittest import mock

    import torch
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1
    rank = 0 if phase in ("tokenising", "saving") else 1
    places = {
        "tokenising": "train.data.prepare.bigram_loss",
        "compile": "torch._inductor.compile_fx.compile_fx",
        "step": "parallel.engine.native.clip",
        "evaluation": "parallel.engine.native.NativeEngine._eval_mode",
        "saving": "train.checkpoint.saver.write_state",
    }
    if world.rank != rank:
        return on_rank(world, overrides)
    import pkgutil

    original = pkgutil.resolve_name(places[phase])
    sent = []

    def interrupted(*arguments: object, **keywords: object) -> object:
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    target = mock.patch(places[phase], interrupted)
    with target:
        answer = on_rank(world, overrides)
    assert sent, f"there was no {phase}"
    return answer
