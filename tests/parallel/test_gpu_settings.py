"""What is asked of torch and NCCL before they start, and of groups that exist."""

import os
from unittest import mock

import pytest

from parallel.environment import prepare_gpus


@pytest.mark.parametrize(
    "said, kept",
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "TORCH_FR_BUFFER_SIZE": "2000"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
        ({"TORCH_NCCL_TRACE_BUFFER_SIZE": "7"}, {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7"}),
    ],
)
def test_what_the_user_has_said_stays(said, kept):
    with mock.patch.dict(os.environ, said, clear=True):
        prepare_gpus()
        assert kept.items() <= os.environ.items()
        assert ("PYTORCH_ALLOC_CONF" in os.environ) == ("PYTORCH_CUDA_ALLOC_CONF" not in said)
        assert ("TORCH_FR_BUFFER_SIZE" in os.environ) == ("TORCH_NCCL_TRACE_BUFFER_SIZE" not in said)


def seconds_of_all_groups(world) -> list[float]:
    import torch
    import torch.distributed as dist

    from parallel.layout import Layout
    from parallel.mesh import build_meshes, set_timeout

    build_meshes(Layout(shard=2), world.device)
    set_timeout(7.0)
    groups = dist.distributed_c10d._world.pg_map
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]


def test_every_group_gets_the_time(group):
    for found in group(2).run(seconds_of_all_groups):
        assert len(found) > 1
        assert set(found) == {7.0}
