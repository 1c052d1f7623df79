"""The order is a permutation and a function of (seed, sample number); windows, targets, documents, padding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from train.data.loader import IGNORE, TrainLoader, ValidationLoader, permute


@given(st.integers(1, 4000), st.integers(0, 2**63), st.integers(0, 5))
def test_permutation(size, seed, epoch):
    order = permute(np.arange(size), size, seed, epoch)
    assert sorted(order.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 64, 65])
def test_permutation_of_small_sizes(size):
    assert sorted(permute(np.arange(size), size, 1, 0).tolist()) == list(range(size))


@given(st.integers(50, 4000), st.integers(0, 1000))
def test_seeds_and_epochs_differ(size, seed):
    order = permute(np.arange(size), size, seed, 0).tolist()
    assert order != permute(np.arange(size), size, seed + 1, 0).tolist()
    assert order != permute(np.arange(size), size, seed, 1).tolist()


def test_large_size_pointwise():
    size = 10**12
    positions = np.array([0, 1, size // 2, size - 1])
    together = permute(positions, size, 3, 0)
    assert ((together >= 0) & (together < size)).all()
    assert len(set(together.tolist())) == 4
    assert [int(permute(positions[[place]], size, 3, 0)[0]) for place in range(4)] == together.tolist()


def test_order_looks_random():
    """Displacements of a uniform permutation average a third of its size, and neighbours do not stay neighbours."""
    size = 3000
    order = permute(np.arange(size), size, 0, 0)
    assert abs(np.abs(order - np.arange(size)).mean() / size - 1 / 3) < 0.02
    assert (np.abs(np.diff(order)) == 1).sum() < 15
    counts = np.bincount([int(permute(np.array([0]), 6, seed, 0)[0]) for seed in range(1200)], minlength=6)
    assert (np.abs(counts - 200) < 60).all()


def test_sample_depends_on_its_number_alone(make_stream):
    stream = make_stream([list(range(1000))], shard_tokens=77)
    loader = TrainLoader(stream, 8, seed=5)
    assert loader.samples_per_epoch == 999 // 8
    numbers = list(range(3 * loader.samples_per_epoch))
    together = loader.batch(numbers)
    for numbers_of_rank in ([5, 371], [300], numbers[7:200:3]):
        batch = loader.batch(numbers_of_rank)
        assert torch.equal(batch.tokens_BS, together.tokens_BS[numbers_of_rank])
        assert torch.equal(batch.targets_BS, together.targets_BS[numbers_of_rank])
    for epoch in range(3):
        rows = together.tokens_BS[epoch * loader.samples_per_epoch : (epoch + 1) * loader.samples_per_epoch]
        assert sorted(rows[:, 0].tolist()) == list(range(0, 8 * loader.samples_per_epoch, 8))
    assert torch.equal(together.targets_BS, together.tokens_BS + 1)
    assert together.tokens_BS.dtype == together.targets_BS.dtype == together.document_BS.dtype == torch.int64


def test_far_away_sample_number(make_stream):
    loader = TrainLoader(make_stream([list(range(100))]), 8, seed=5)
    assert loader.batch([10**15]).tokens_BS.shape == (1, 8)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 16), st.integers(1, 40))
def test_rows_against_plain_python(tmp_path_factory, lengths, sequence, shard_tokens):
    from train.data.shards import SplitWriter

    folder = tmp_path_factory.mktemp("stream")
    writer = SplitWriter(folder, "train", "<u2", shard_tokens)
    ids: list[int] = []
    for number, length in enumerate(lengths):
        writer.write(np.arange(len(ids), len(ids) + length))
        writer.end_document()
        ids += [number] * length
    assert writer.close()["tokens"] == len(ids)
    stream = writer.stream(1 << 31)
    assert len(writer.files) == -(-len(ids) // shard_tokens)
    assert stream.document_ids(0, len(ids)).tolist() == ids
    start, stop = len(ids) // 3, len(ids) - len(ids) // 4
    assert stream.document_ids(start, stop).tolist() == ids[start:stop]
    assert stream.read(start, stop).tolist() == list(range(start, stop))
    assert stream.read(start, start).tolist() == stream.document_ids(start, start).tolist() == []
    if len(ids) <= sequence:
        with pytest.raises(UserError, match=r"train\.sequence="):
            TrainLoader(stream, sequence, seed=0)
        return
    loader = TrainLoader(stream, sequence, seed=0)
    batch = loader.batch(range(loader.samples_per_epoch))
    for tokens, targets, documents in zip(batch.tokens_BS, batch.targets_BS, batch.document_BS, strict=True):
        first = int(tokens[0])
        assert tokens.tolist() == list(range(first, first + sequence))
        assert targets.tolist() == list(range(first + 1, first + sequence + 1))
        assert documents.tolist() == [ids[place] - ids[first] for place in range(first, first + sequence)]


@given(st.integers(2, 60), st.integers(1, 16), st.none() | st.integers(1, 80))
def test_validation_covers_every_target_once(tmp_path_factory, tokens, sequence, limit):
    from train.data.shards import SplitWriter

    writer = SplitWriter(tmp_path_factory.mktemp("stream"), "validation", "<u2", 13)
    writer.write(np.arange(tokens))
    writer.end_document()
    writer.close()
    loader = ValidationLoader(writer.stream(1 << 31), sequence, limit)
    expected = min(tokens - 1, limit or tokens)
    batch = loader.batch(range(loader.num_samples + 3))
    counted = batch.targets_BS[batch.targets_BS != IGNORE].tolist()
    assert counted == list(range(1, expected + 1))
    assert loader.num_targets == expected
    assert loader.num_samples == -(-expected // sequence)
    assert (batch.targets_BS[loader.num_samples :] == IGNORE).all()
    assert (batch.tokens_BS >= 0).all()
    real = batch.targets_BS != IGNORE
    assert torch.equal(batch.tokens_BS[real], batch.targets_BS[real] - 1)
    for row, documents in enumerate(batch.document_BS[: loader.num_samples]):
        padding = documents[~real[row]]
        assert not set(padding.tolist()) & set(documents[real[row]].tolist())


def test_validation_with_nothing(make_stream):
    for documents, limit in (([[1]], None), ([[1, 2, 3]], 0)):
        with pytest.raises(UserError, match="nothing to validate on"):
            ValidationLoader(make_stream(documents), 4, limit)


def test_batch_moves_to_a_device(make_stream):
    batch = TrainLoader(make_stream([list(range(20))]), 4, seed=0).batch([0, 1])
    moved = batch.to("meta")
    assert moved.tokens_BS.device.type == moved.targets_BS.device.type == "meta"
    assert moved.document_BS.device.type == "cpu"  # who sees whom is worked out on the host
    assert torch.equal(batch.to(torch.device("cpu")).tokens_BS, batch.tokens_BS)
