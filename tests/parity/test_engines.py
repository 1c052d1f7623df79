"""Other engines follow the single-process run of the native one: losses and gradient norms of eight steps."""

import math

import numpy as np
import pytest

from tests.parity.test_layouts import LENGTH, MODEL, SCHEDULE
from tests.support import reference, whole_runs
from train.config import load_config
from train.data.prepare import prepare
from train.data.shards import open_shards

RUN = ["model.num_layers=2", *MODEL, *LENGTH, *SCHEDULE]
TOLERANCE = 1e-4


@pytest.fixture
def carry_out(group, corpus, tmp_path):
    def carry_out(axes, runs, case=whole_runs.train):
        layout = [f"parallel.{key}={value}" for key, value in axes.items()]
        configs = [load_config([f"run.dir={tmp_path}/{n}", *corpus, *RUN, *layout, *run]) for n, run in enumerate(runs)]
        answers = group(math.prod(axes.values())).run(case, configs, timeout=300.0)
        (written,) = [answer for answer in answers if answer is not None]
        return written

    return carry_out


@pytest.fixture(scope="module")
def expected(corpus):
    known = {}

    def of(*overrides):
        if overrides not in known:
            config = load_config([*corpus, *RUN, *overrides])
            known[overrides] = reference.losses_and_norms(
                config, open_shards(prepare(config.data, config.tokenizer, progress=False))
            )
        return known[overrides]

    return of


ZERO = ["parallel.engine=deepspeed", "train.precision=fp32"]


@pytest.mark.parametrize("ranks", [2, 4])
def test_zero_is_the_bare_loop(carry_out, expected, ranks):
    runs = [[*ZERO, f"parallel.zero_stage={stage}", f"train.microbatch={rows}"] for stage in (1, 2, 3) for rows in (2, 4)]
    for run, found in zip(runs, carry_out({"shard": ranks}, runs), strict=True):
        print(run, np.abs(np.array(found) / np.array(expected()) - 1).max(axis=0))
        np.testing.assert_allclose(found, expected(), rtol=TOLERANCE, atol=0, err_msg=str(run))
