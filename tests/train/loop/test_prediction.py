"""The planner's memory against live tensors of real steps."""

import pytest

from benchmarks.planner_memory import peak, words_of
from parallel.environment import ProcessEnvironment
from parallel.mesh import connect
from parallel.plan.hardware import load_hardware
from parallel.plan.memory import memory
from train.config import load_config
from train.config.resolve.microbatch import job_of


@pytest.mark.parametrize("name", ["4,096 words", "full"])
def test_predicted_memory_is_what_a_step_needs(name):
    """One where the loss's chunk of logits decides, one where a recomputed block does; more in docs/benchmarks/planner.md."""
    predicted = memory(job_of(load_config(words_of(name)), load_hardware("cpu")))["total"]
    with connect(ProcessEnvironment.read()) as world:
        assert predicted == pytest.approx(peak(world, words_of(name)), rel=0.03)
