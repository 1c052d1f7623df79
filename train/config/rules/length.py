"""Rules for the length of a run and the size of its batches."""

import math
from collections.abc import Iterator

from train.config.schema import Config


def length_rules(config: Config) -> Iterator[str]:
    """The length is set once, and a batch is a whole number of micro-batches on every data-parallel rank."""
    train, layout = config.train, config.parallel.layout
    if train.tokens is not None and train.steps is not None:
        yield f"train.tokens={train.tokens} and train.steps={train.steps} are both set: set one and make the other null"
    if train.tokens is None and train.steps is None:
        yield "neither train.tokens nor train.steps is set: set one"
    per_pass = config.pass_tokens
    for key in ("batch_tokens", "batch_warmup_start"):
        tokens = getattr(train, key)
        if tokens is not None and tokens % per_pass:
            below = tokens // per_pass * per_pass
            nearest = f"{below} or {below + per_pass}" if below else f"{per_pass}"
            rows = math.gcd(tokens // (train.sequence * layout.data_parallel), train.microbatch)
            has_rows = tokens % (train.sequence * layout.data_parallel) == 0
            yield (
                f"train.{key}={tokens} is not a multiple of sequence x microbatch x data-parallel ranks = "
                f"{train.sequence} x {train.microbatch} x {layout.data_parallel} = {per_pass}: type train.{key}={nearest}"
                + (f", or train.microbatch={rows}" if has_rows else "")
            )
    yield from _batch_warmup(config)


def _batch_warmup(config: Config) -> Iterator[str]:
    train = config.train
    start, length = train.batch_warmup_start, train.batch_warmup_tokens
    if start is None and length:
        yield f"train.batch_warmup_tokens={length} needs the size of the first batch: set train.batch_warmup_start"
    if start is not None and not length:
        yield f"train.batch_warmup_start={start} needs a length: set train.batch_warmup_tokens"
    if start is not None and (start > train.batch_tokens or train.batch_tokens % start):
        yield f"train.batch_tokens={train.batch_tokens} is not a multiple of its increment, train.batch_warmup_start={start}"


def has_length(config: Config) -> bool:
    """Whether the length is set and valid; if not, `length_rules` reports it."""
    return (config.train.tokens is None) != (config.train.steps is None) and not any(_batch_warmup(config))
