"""`foretrain launch local`: a run with restarts, on this machine or as one node of several."""

import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from launch.local import TRAIN, Place, start_workers
from launch.machine import require_room
from launch.state import last_line_of, run_folder, status_of
from train.config import Config, load_config, require

PREEMPTED = 75
"""Exit code of a run that was stopped, has saved, and is to be started again (EX_TEMPFAIL of sysexits.h)."""
LAST_LINES = 20
_PAUSE_SECONDS = 1.0


def run_local(words: Sequence[str], *, max_restarts: int, place: Place) -> int:
    """Train with restarts. Returns 0 where the run is finished, 75 where it was stopped and has saved, else what failed.

    Raises:
        UserError: the configuration is wrong, or this machine has no room for it.
    """
    config = load_config(words)
    world_size = config.parallel.layout.world_size
    require(config, world_size=world_size, overrides=words)
    if world_size % place.nodes:
        raise UserError(f"{world_size} processes do not divide over {place.nodes} nodes: change --nodes or parallel.*")
    require_room(config, nodes=place.nodes)
    began = _step(config)
    failed_at = -1
    for restart in range(max_restarts + 1):
        if world_size == 1 and max_restarts == 0:
            code = int(importlib.import_module(TRAIN).main(list(words)))
        else:
            code = start_workers(world_size, TRAIN, list(words), place, last_lines=LAST_LINES)
        if code == 0:
            return _ending(config, began)
        if code != 1:
            return code
        step = _step(config)
        if step <= failed_at:
            print(f"error: it failed twice without a step beyond {step}: not started again", file=sys.stderr)
            return 1
        failed_at = step
        if restart < max_restarts:
            print(f"restart {restart + 1} of {max_restarts} (it came to step {step})", file=sys.stderr, flush=True)
            time.sleep(_PAUSE_SECONDS)
    return 1


def read_words(path: Path) -> list[str]:
    """The overrides in a file of `launch slurm` or `launch ladder`: a JSON list.

    Raises:
        UserError: there is no such file, or it is none of those.
    """
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--run {path}: {error.strerror}") from None
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"--run {path}: it must hold a JSON list of overrides, as foretrain launch slurm writes it")
    return words


def _ending(config: Config, began: int) -> int:
    """The exit code of processes that ended well. Another start without a single new step is no use: that is a failure."""
    if status_of(run_folder(config)) != "preempted":
        return 0
    if _step(config) > began:
        return PREEMPTED
    print("error: it was stopped before it had made a step: give it more time", file=sys.stderr)
    return 1


def _step(config: Config) -> int:
    line = last_line_of(run_folder(config))
    return 0 if line is None else line.step
