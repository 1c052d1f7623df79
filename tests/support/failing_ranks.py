"""Cases for the tests of the group itself."""

import os
import time

import torch
import torch.distributed as dist

from parallel.mesh import World


def total(world: World, value: int) -> tuple[int, int]:
    tensor = torch.tensor(value * (world.rank + 1), device=world.device)
    dist.all_reduce(tensor)
    return os.getpid(), int(tensor)


def fail_on(world: World, rank: int) -> None:
    if world.rank == rank:
        print("something the rank said before")
        raise ValueError("a broken case")
    dist.barrier()


def hang_on(world: World, rank: int) -> None:
    if world.rank == rank:
        time.sleep(1000)
    dist.barrier()


def die_on(world: World, rank: int) -> None:
    if world.rank == rank:
        os._exit(3)
    dist.barrier()


def publish(world: World, value: str) -> str:
    if world.rank == 0:
        world.publish("key", value)
    return world.await_value("key")
