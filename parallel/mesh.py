"""The processes of a run, and the device meshes over them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from common.errors import UserError
from parallel.environment import ProcessEnvironment, keep_freed_memory
from parallel.layout import Layout
from parallel.names import DeviceName

_FOREVER = timedelta(days=14)  # how long others wait while rank 0 tokenises a corpus


@dataclass(frozen=True)
class World:
    """The processes of one run, as seen by one of them. Passed as an argument, never global."""

    rank: int
    size: int
    device: torch.device
    store: Store

    def publish(self, key: str, value: str) -> None:
        """Store a value under `key`, for other ranks to read."""
        self.store.set(key, value)

    def await_value(self, key: str) -> str:
        """Wait for the value that another rank publishes. Not a collective, so no timeout of collectives applies."""
        self.store.wait([key], _FOREVER)
        return bytes(self.store.get(key)).decode()


@contextmanager
def connect(environment: ProcessEnvironment, device_type: DeviceName = "auto") -> Iterator[World]:
    """Join the process group of this run, and leave it at the end.

    `device_type`: what computes; auto: a GPU where there is one. A single process forms a group of one without touching the
    network, so that one code path serves every layout.

    Raises:
        UserError: a GPU is asked for, and torch finds none.
    """
    if environment.threads is not None:
        torch.set_num_threads(environment.threads)
    store: Store
    if environment.launched:
        store, rank, size = next(rendezvous("env://"))
        if environment.local_world_size == size:
            # On a single node torchrun may keep its store across a restart, with the addresses of dead processes.
            store = PrefixStore(f"restart_{environment.restart}", store)
    else:
        store, rank, size = HashStore(), 0, 1
    if device_type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"train.device=cuda: torch {torch.__version__} finds no GPU here. Leave train.device out, or install a build of "
            f"torch for your driver (nvidia-smi says which CUDA it has)"
        )
    if device_type != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda", environment.local_rank)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device = torch.device("cpu")
        keep_freed_memory()
        backend = "gloo"
    # With the device NCCL connects all ranks of a group at once: the first message of a pair would otherwise wait for all.
    gpu = device if device.type == "cuda" else None
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, device_id=gpu)
    try:
        yield World(rank, size, device, PrefixStore("run", store))
    except BaseException:
        if gpu is not None:  # NCCL would wait for operations that other ranks never begin
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def set_timeout(seconds: float) -> None:
    """How long operations of all groups that exist may take. NCCL then ends the process."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


@dataclass(frozen=True)
class Meshes:
    """Three views of one world mesh. Each has all of its axes, even those of size 1.

    Tensor is innermost because it communicates most, pipeline outermost because it communicates least.
    """

    axes: DeviceMesh
    """(pipeline, replicate, shard, context, tensor): the layout as configured"""
    parameters: DeviceMesh
    """(pipeline, replicate, parameters, tensor): parameters are sharded over `parameters` = (shard, context)"""
    data: DeviceMesh
    """(pipeline, data, tensor): losses and gradients are summed over `data` = (replicate, shard, context)"""

    @property
    def data_rank(self) -> int:
        """Index of this rank among the `data_parallel` ranks of the layout, which says which samples it reads."""
        return self.axes.get_local_rank("replicate") * self.axes["shard"].size() + self.axes.get_local_rank("shard")


def build_meshes(layout: Layout, device: torch.device) -> Meshes:
    """The views of a layout over the default process group, whose size must be the layout's."""
    sizes = asdict(layout)
    assert layout.world_size == dist.get_world_size()
    world = init_device_mesh(device.type, (layout.world_size,), mesh_dim_names=("world",))

    def view(**axes: int) -> DeviceMesh:
        return world._unflatten(0, tuple(axes.values()), tuple(axes))

    outer, inner = {"pipeline": layout.pipeline}, {"tensor": layout.tensor}
    return Meshes(
        axes=view(**{axis: sizes[axis] for axis in ("pipeline", "replicate", "shard", "context", "tensor")}),
        parameters=view(**outer, replicate=layout.replicate, parameters=layout.shard * layout.context, **inner),
        data=view(**outer, data=layout.data_parallel * layout.context, **inner),
    )
