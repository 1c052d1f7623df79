"""The peak of live tensor bytes, against tensors of known sizes."""

import gc

import pytest
import torch

from tests.support import meshes_and_shards
from train.loop.memory import LiveBytes, PeakMemory

KIB = 1024


def of_bytes(size: int) -> torch.Tensor:
    return torch.empty(size // 4, dtype=torch.float32)


def test_what_lives_at_once_adds_up_and_what_is_freed_goes():
    with LiveBytes([]) as live:
        first = of_bytes(4 * KIB)
        second = of_bytes(8 * KIB)
        assert (live.current, live.peak) == (12 * KIB, 12 * KIB)
        del first
        assert (live.current, live.peak) == (8 * KIB, 12 * KIB)
        third = of_bytes(2 * KIB)
        assert (live.current, live.peak) == (10 * KIB, 12 * KIB)
        del second, third
    assert (live.current, live.peak) == (0, 12 * KIB)


def test_existing_tensors_count_once_whoever_shares_them():
    table = of_bytes(4 * KIB)
    live = LiveBytes([table, table, table.view(2, -1), table[10:20]])
    assert live.current == live.peak == 4 * KIB


def test_a_view_owns_nothing_but_keeps_its_storage_alive():
    with LiveBytes([]) as live:
        part = of_bytes(4 * KIB)[:10].view(2, 5)
        assert live.current == 4 * KIB
        other = part.t()
        del part
        assert live.current == 4 * KIB
        del other
        assert live.current == 0


def test_in_place_work_adds_nothing():
    with LiveBytes([]) as live:
        tensor = of_bytes(4 * KIB)
        tensor.add_(1).mul_(2).zero_()
        assert live.peak == 4 * KIB


def test_a_storage_resized_in_place_counts_at_its_new_size():
    with LiveBytes([]) as live:
        tensor = of_bytes(4 * KIB)
        tensor.untyped_storage().resize_(0)
        assert live.current == 0
        tensor.untyped_storage().resize_(16 * KIB)
        assert (live.current, live.peak) == (16 * KIB, 16 * KIB)
        del tensor
        assert live.current == 0


def test_what_autograd_saves_for_backward_is_counted():
    source = torch.ones(KIB, requires_grad=True)
    live = LiveBytes([source])
    with live:
        result = (source.exp().exp() * 1.0).sum()  # each exp saves its result, and nobody else holds it
        held = live.current
        assert held == 4 * KIB * 3 + 4
        result.backward()
        del result
    gc.collect()
    assert live.current == 4 * KIB * 2  # the source and its gradient


def test_the_meta_device_costs_nothing():
    with LiveBytes([]) as live:
        torch.empty(KIB, device="meta").add(1)
        assert live.peak == 0


def test_resize_is_as_it_was_afterwards_even_after_an_error():
    original = torch.UntypedStorage.resize_
    live = LiveBytes([])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside"), live:
            assert torch.UntypedStorage.resize_ is not original
            raise RuntimeError("inside")
        assert torch.UntypedStorage.resize_ is original


def test_tensors_that_outlive_the_watch_are_forgotten_when_they_die():
    live = LiveBytes([])
    with live:
        tensor = of_bytes(4 * KIB)
    assert live.current == 4 * KIB
    del tensor
    assert live.current == 0
    with live:
        kept = of_bytes(4 * KIB)  # noqa: F841
        assert (live.current, live.peak) == (4 * KIB, 4 * KIB)


def test_only_the_first_steps_are_watched():
    memory = PeakMemory(torch.device("cpu"), [of_bytes(4 * KIB)], watch=True)
    assert memory.peak_bytes() == 4 * KIB
    assert [memory.watching(step) is not None for step in range(4)] == [True, True, False, False]
    unwatched = PeakMemory(torch.device("cpu"), [], watch=False)
    assert unwatched.watching(0) is None
    assert unwatched.peak_bytes() is None


def test_gathered_parameters_of_fsdp_are_counted_while_they_are_there(group):
    """Four linears of 256 KiB on two ranks: shards 512 KiB, gradient shards as much, and gathered layers while in use.

    The most is alive in the second backward: shards and their gradients, two gathered layers (one in use, one prefetched), a
    whole gradient, its copy to reduce and the half of it that comes out.
    """
    layer = 256 * KIB
    for peak, current, shards in group(2).run(meshes_and_shards.fsdp_memory):
        assert shards == 4 * layer // 2
        assert peak == pytest.approx(2 * shards + 4.5 * layer, rel=0.05)
        assert current == pytest.approx(2 * shards, rel=0.01)
