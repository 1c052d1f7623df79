"""Runs one checked configuration on a process group: prepares folder and data, trains, returns an exit code."""

import json
import sys
from pathlib import Path

import torch

from common.errors import UserError, WorkFailed
from parallel.mesh import World
from train.config import Config
from train.data.prepare import prepare
from train.data.shards import Shards, open_shards
from train.folder.directory import RunDirectory
from train.loop import console
from train.loop.stop import Stopped, StopRequest, exit_code
from train.loop.trainer import Trainer


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
        return Trainer(config, world, open_shards(Path(outcome["shards"])), None, stop, asynchronous=asynchronous).train()
    except (UserError, WorkFailed) as error:  # every rank raises the same error; rank 0 prints it
        return error.exit_code
    except RuntimeError:  # a collective fails when rank 0 exits; rank 0 has printed why
        outcome = json.loads(world.await_value("start"))
        if "exit_code" not in outcome:
            raise
        return int(outcome["exit_code"])


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
                shards = _prepare_data(config)
            world.publish("start", json.dumps({"shards": str(shards.folder.absolute())}))
            try:
                return Trainer(config, world, shards, directory, stop, asynchronous=asynchronous).train()
            except RuntimeError as error:
                if not isinstance(error, WorkFailed) and _is_lost_connection(error):
                    raise WorkFailed(
                        f"run {config.run.name} lost another of its processes: {str(error).splitlines()[0]}\n"
                        f"The same command goes on from the newest checkpoint (torchrun --max-restarts does so by itself)"
                    ) from error
                if isinstance(error, WorkFailed) or not _is_out_of_memory(error):
                    raise
                raise WorkFailed(
                    f"{world.device} does not have enough memory for this model and batch ({config.model.shape.parameters:,} "
                    f"parameters): lower train.microbatch, raise parallel.shard, or choose a smaller model"
                ) from error
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
    return "gloo/transport" in str(error) or "NCCL" in str(error) or isinstance(error, torch.distributed.DistBackendError)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _prepare_data(config: Config) -> Shards:
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
    return shards
