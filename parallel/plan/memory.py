"""Bytes on a rank, by part. Standard library only.

Sources: states as in ZeRO (Rajbhandari et al., arXiv 1910.02054, section 3); activations as in Korthikanti et al. (arXiv
2205.05198, section 4), by the recipe's table.
"""

import math

from parallel.plan.counting import block_bytes, held_parameters, kept_bytes, layer_parameters
from parallel.plan.job import Job
from parallel.plan.own_memory import rank_bytes
from parallel.plan.stages import contents, in_flight

GIB = 2**30
PARTS = ("weights", "gradients", "optimizer", "reduction", "gathered", "activations", "loss", "buffers", "slack")


def rank_memory(job: Job, rank: int = 0) -> dict[str, float]:
    """Peak bytes on a pipeline rank by part; their sum is `total`."""
    if job.recipe.own:
        own = rank_bytes(job, rank)
        # Activations and temporaries come and go, which leaves holes; the rest is allocated once.
        own["slack"] = job.constants.slack_gib * GIB + (job.constants.activation_scale - 1) * own["activations"]
        own["total"] = sum(own.values())
        return own
    content, choice, recipe, constants = contents(job)[rank], job.choice, job.recipe, job.constants
    parameters = held_parameters(job.shape, content) / choice.tensor
    ranks = choice.shard * choice.context
    states = recipe.states[choice.zero]
    parts = {
        name: parameters * (pair[0] + pair[1] / ranks)
        for name, pair in (("weights", states.weights), ("gradients", states.gradients), ("optimizer", states.optimizer))
    }
    parts["weights"] += parameters * job.quantized_bytes
    parts["reduction"] = parameters * sum(states.reduction) if choice.data_parallel > 1 else 0.0
    layer = layer_parameters(job.shape) / choice.tensor
    largest = max(layer, job.shape.parameters_embedding / choice.tensor if content.embedding or content.head else 0)
    # Two neighbours are whole at a time where weights are divided, and one gradient on its way to be divided.
    parts["gathered"] = (2 * layer + largest) * job.element_bytes if choice.zero >= 3 and ranks > 1 else 0.0
    blocks = content.layers * in_flight(job, rank) * block_bytes(job)
    if choice.recompute != "none":  # the block whose backward pass runs has all of its activations
        blocks += max(0.0, kept_bytes(job, recipe.kept["none"]) - block_bytes(job))
    parts["activations"] = blocks * constants.activation_scale
    tokens = min(job.tokens, recipe.logit_chunk or job.tokens)
    parts["loss"] = tokens * recipe.logit_bytes * job.shape.vocab_size / choice.tensor if content.head else 0.0
    parts["buffers"] = constants.gathered * job.tokens * job.shape.hidden_size if choice.tensor > 1 else 0.0
    parts["slack"] = constants.slack_gib * GIB
    parts["total"] = sum(parts.values())
    return parts


def memory(job: Job) -> dict[str, float]:
    """`rank_memory` of the pipeline rank that needs most: the first or the last, but under zbv and dualpipev any."""
    ranks = job.choice.pipeline
    candidates = {0, ranks - 1} if ranks > 2 and job.recipe.cut != "threshold" else set(range(min(ranks, 64)))
    return max((rank_memory(job, rank) for rank in sorted(candidates)), key=lambda parts: parts["total"])


def fit_chance(job: Job, total_gib: float) -> float:
    """How likely a layout fits, if predicted memory is off by `memory_spread` (normally distributed)."""
    spare = capacity_gib(job) / total_gib - 1
    return 0.5 * (1 + math.erf(spare / (job.constants.memory_spread * math.sqrt(2))))


def capacity_gib(job: Job) -> float:
    """GiB that a run can have: the device's, without what driver and communication libraries take."""
    return job.hardware.memory_gib - job.constants.reserve_gib
