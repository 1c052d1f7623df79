"""Meshes and slices on several ranks."""

import pytest

from tests.support import meshes_and_shards


def test_a_rank_finds_itself_in_every_view(group):
    answers = group(4).run(meshes_and_shards.mesh_views, {"replicate": 2, "shard": 2})
    for rank, seen in enumerate(answers):
        replicate, shard = divmod(rank, 2)
        names = ("pipeline", "replicate", "shard", "context", "tensor")
        assert seen["axes"] == (names, (1, 2, 2, 1, 1), (0, replicate, shard, 0, 0))
        assert seen["parameters"] == (("pipeline", "replicate", "parameters", "tensor"), (1, 2, 2, 1), (0, replicate, shard, 0))
        assert seen["data"] == (("pipeline", "data", "tensor"), (1, 4, 1), (0, rank, 0))
        assert seen["data_rank"] == rank


def test_ranks_of_one_context_group_see_the_same_samples_and_share_parameters(group):
    answers = group(4).run(meshes_and_shards.mesh_views, {"shard": 2, "context": 2})
    assert [seen["data_rank"] for seen in answers] == [0, 0, 1, 1]
    assert [seen["parameters"][2] for seen in answers] == [(0, 0, rank, 0) for rank in range(4)]


def test_tensor_ranks_are_neighbours_and_pipeline_stages_far_apart(group):
    answers = group(4).run(meshes_and_shards.mesh_views, {"tensor": 2, "pipeline": 2})
    assert [seen["axes"][2] for seen in answers] == [(0, 0, 0, 0, 0), (0, 0, 0, 0, 1), (1, 0, 0, 0, 0), (1, 0, 0, 0, 1)]
    assert [seen["data_rank"] for seen in answers] == [0] * 4


@pytest.mark.parametrize("sizes", [{"shard": 4}, {"replicate": 2, "shard": 2}, {"replicate": 4}, {"shard": 2, "context": 2}])
def test_a_slice_is_where_its_offset_says(group, sizes):
    for right in group(4).run(meshes_and_shards.local_slices, sizes):
        assert right == [True] * len(right)


def test_a_single_process_holds_everything(group):
    (right,) = group(1).run(meshes_and_shards.local_slices, {})
    assert right == [True] * len(right)
