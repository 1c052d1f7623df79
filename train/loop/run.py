"""Runs one checked configuration on a process group: prepares folder and data, trains, returns an exit code."""

import json
import logging
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError, WorkFailed
from parallel.environment import LOST, ProcessEnvironment
from parallel.mesh import World
from train.config import Config
from train.data.prepare import prepare
from train.data.sets import open_sets, overlap, prepare_sets
from train.data.shards import Shards, open_shards
from train.data.verify import DamagedTokens
from train.folder.directory import RunDirectory
from train.loop import console
from train.loop.stop import Stopped, StopRequest, exit_code
from train.loop.trainer import Trainer
from train.scoring.built_in import make_tasks, task_files
from train.scoring.tasks import read_tasks

log = logging.getLogger("foretrain")

_VERDICT_SECONDS, _VERDICT_TRIES = 3.0, 30


def run(config: Config, world: World, stop: StopRequest | None = None, *, asynchronous: bool | None = None) -> int:
    """Run `config` on `world`. Returns the exit code. Rank 0 prints all messages. `asynchronous`: see `Trainer`.

    Raises:
        UserError, WorkFailed: on rank 0; the other ranks then return the same exit code, and print nothing.
    """
    stop = stop or StopRequest()
    return (_lead if world.rank == 0 else _follow)(config, world, stop, asynchronous)


def _follow(config: Config, world: World, stop: StopRequest, asynchronous: bool | None) -> int:
    outcome = json.loads(world.await_value("start"))
    if "exit_code" in outcome:
        return int(outcome["exit_code"])
    try:
        return Trainer(config, world, _open(outcome), None, stop, asynchronous=asynchronous).train()
    except DamagedTokens as error:  # this rank's alone, or every rank's
        return _verdict(world, error)
    except (UserError, WorkFailed) as error:  # every rank raises the same error; rank 0 prints it
        return error.exit_code
    except RuntimeError as error:
        if _is_lost_connection(error):
            return _verdict(world, None)
        if _is_out_of_memory(error):
            return _verdict(world, _out_of_memory(config, world))
        raise


def _verdict(world: World, own: WorkFailed | None) -> int:
    """The exit code that rank 0 publishes when it fails. If it publishes none soon, this rank's `own` error is printed here."""
    with suppress(RuntimeError):  # the store may be gone
        for _ in range(_VERDICT_TRIES):
            outcome = json.loads(world.await_value("start"))
            if "exit_code" in outcome:
                return int(outcome["exit_code"])
            time.sleep(_VERDICT_SECONDS / _VERDICT_TRIES)
    if own is not None:
        print(f"error: {own}", file=sys.stderr)
        return own.exit_code
    return LOST if ProcessEnvironment.read().by_foretrain else WorkFailed.exit_code


def _lead(config: Config, world: World, stop: StopRequest, asynchronous: bool | None) -> int:
    try:
        directory = RunDirectory(config)
        try:
            if directory.finished:
                assert directory.existing is not None
                print(f"{directory.path} is finished.")
                console.show_table(directory.path, directory.existing)
                world.publish("start", json.dumps({"exit_code": 0}))
                return 0
            with stop.raising():
                outcome = _prepare_data(config)
            world.publish("start", json.dumps(outcome))
            try:
                return Trainer(config, world, _open(outcome), directory, stop, asynchronous=asynchronous).train()
            except RuntimeError as error:
                if not isinstance(error, WorkFailed) and _is_lost_connection(error):
                    if ProcessEnvironment.read().by_foretrain:  # which says who died first
                        world.publish("start", json.dumps({"exit_code": LOST}))
                        return LOST
                    raise WorkFailed(
                        f"run {config.run.name} lost another of its processes, whose last lines say why.\n"
                        f"The same command goes on from the newest checkpoint (torchrun --max-restarts does so by itself).\n"
                        f"({str(error).splitlines()[0]})"
                    ) from error
                if isinstance(error, WorkFailed) or not _is_out_of_memory(error):
                    raise
                raise _out_of_memory(config, world) from error
        finally:
            directory.close()
    except (UserError, WorkFailed) as error:
        world.publish("start", json.dumps({"exit_code": error.exit_code}))
        raise
    except Stopped:
        code = exit_code(stop.signal, saved=False)
        world.publish("start", json.dumps({"exit_code": code}))
        print(f"stopped by {stop.name} before the first step; nothing was lost. The same command starts again", file=sys.stderr)
        return code


def _is_lost_connection(error: RuntimeError) -> bool:
    return "gloo/transport" in str(error) or "NCCL" in str(error) or isinstance(error, torch.distributed.DistError)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _out_of_memory(config: Config, world: World) -> WorkFailed:
    return WorkFailed(
        f"{world.device} does not have enough memory for this model and batch ({config.model.shape.parameters:,} "
        f"parameters): lower train.microbatch, raise parallel.shard, or choose a smaller model"
    )


def _open(outcome: dict[str, Any]) -> Shards:
    """The tokens that rank 0 has prepared."""
    return open_shards(Path(outcome["shards"]), {name: Path(folder) for name, folder in outcome["sets"].items()})


def _prepare_data(config: Config) -> dict[str, Any]:
    """Tokenise what the run reads. Returns its folders, for `_open`."""
    read_tasks(task_files(config.eval.tasks))  # what is wrong with them or the sets is said before the text is tokenised
    corpora = open_sets(config.eval.sets, config.data)
    shards = open_shards(prepare(config.data, config.tokenizer, progress=True))
    if shards.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {shards.vocab_size} entries, the model model.vocab_size={config.model.vocab_size} rows: "
            f"set model.vocab_size to at least {shards.vocab_size}"
        )
    if shards.train.tokens <= config.train.batch_tokens:
        raise UserError(
            f"the corpus has {shards.train.tokens} training tokens, fewer than one batch of "
            f"train.batch_tokens={config.train.batch_tokens} and a target: add text or lower train.batch_tokens"
        )
    make_tasks(config.eval.tasks, shards)  # too few questions end the run here, on rank 0 alone
    sets = prepare_sets(corpora, config.data, shards, progress=True)
    for name, folder in sets.items():
        if (found := overlap(name, corpora[name], config.data, folder, shards)) is not None:
            log.warning("%s", found)
    return {
        "shards": str(shards.folder.absolute()),
        "sets": {name: str(folder.absolute()) for name, folder in sets.items()},
    }
