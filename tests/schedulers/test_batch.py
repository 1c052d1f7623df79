"""Batch-size warmup against a plain loop over its steps."""

from hypothesis import given
from hypothesis import strategies as st

from schedulers.batch import BatchWarmup

warmups = st.builds(
    lambda start, times, over: BatchWarmup(full=start * times, start=start, warmup_tokens=over),
    st.integers(1, 50),
    st.integers(1, 12),
    st.integers(0, 3000),
)


def sizes(batches: BatchWarmup, steps: int) -> list[int]:
    """The batch of every step, from its definition."""
    tokens, found, growth = 0, [], batches.full // batches.start - 1
    for _ in range(steps):
        done = tokens * growth // batches.warmup_tokens if batches.warmup_tokens else growth
        found.append(min(batches.full, batches.start * (1 + done)))
        tokens += found[-1]
    return found


@given(warmups, st.integers(1, 400))
def test_every_step_has_its_size(batches, steps):
    tokens = 0
    for number, size in enumerate(sizes(batches, steps), start=1):
        assert batches.batch_after(tokens) == size
        tokens += size
        assert batches.batch_before(tokens) == size
        assert batches.tokens(number) == tokens
        assert batches.steps(tokens) == number
        assert batches.steps(tokens + 1) == number + 1


@given(warmups, st.integers(0, 2000), st.integers(1, 3000))
def test_steps_from_anywhere(batches, begin, more):
    tokens, steps = begin, 0
    while tokens < begin + more:
        tokens, steps = tokens + batches.batch_after(tokens), steps + 1
    assert batches.steps(begin + more, begin) == steps


@given(warmups)
def test_it_grows_to_its_full_size_and_no_further(batches):
    found = [stage.batch_tokens for stage in batches.stages]
    assert found == sorted(set(found))
    assert found[-1] == batches.full == batches.batch_after(10**9)


def test_without_warmup_it_is_full_at_once():
    batches = BatchWarmup(full=64, start=64, warmup_tokens=0)
    assert (batches.batch_after(0), batches.steps(65), batches.tokens(3)) == (64, 2, 192)
