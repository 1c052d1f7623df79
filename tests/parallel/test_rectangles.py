"""Parts of tensors that are no slices: they cover what they say, and checkpoints take them as they take any slice."""

import math

import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from parallel.rectangles import Rectangles, consecutive
from train.checkpoint.storage import copy_to_cpu, read_state, read_whole, write_state


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=2).map(tuple),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_consecutive_elements_are_where_the_whole_tensor_has_them(shape, cut):
    size = math.prod(shape)
    first, end = sorted(round(share * size) for share in cut)
    whole = torch.arange(size)
    seen = torch.full((size,), -1).view(shape)
    parts = list(consecutive(whole[first:end], shape, first))
    for offset, view in parts:
        seen[tuple(slice(start, start + length) for start, length in zip(offset, view.shape, strict=True))] = view
    expected = torch.where((whole >= first) & (whole < end), whole, -1).view(shape)
    assert torch.equal(seen, expected)
    assert len(parts) <= 3


def test_a_checkpoint_of_parts_is_a_checkpoint_of_the_tensor(tmp_path):
    """Two parts written, the whole read; the whole written, a part read."""
    whole = torch.arange(35, dtype=torch.float32).view(5, 7)
    flat = whole.flatten()
    cut = 17
    state = {
        "both": Rectangles((5, 7), [*consecutive(flat[:cut], (5, 7), 0), *consecutive(flat[cut:], (5, 7), cut)]),
        "plain": whole.clone(),
    }
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        copies: dict[str, torch.Tensor] = {}
        copy_to_cpu(state, copies)
        flat_before = flat.clone()
        flat.zero_()  # what is written are the copies
        write_state(tmp_path, state, copies, dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    found = read_whole(tmp_path, "")
    assert torch.equal(found["both"].flatten(), flat_before)
    part = torch.zeros(20)
    read_state(tmp_path, {"plain": Rectangles((5, 7), list(consecutive(part, (5, 7), 9)))})
    assert torch.equal(part, flat_before[9:29])
