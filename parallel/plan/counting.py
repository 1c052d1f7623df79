"""Parameters of a pipeline rank, and activation bytes of a block by a recipe's table. Standard library only.

Activations as in Korthikanti et al. (arXiv 2205.05198, section 4).
"""

from parallel.plan.job import Job
from parallel.plan.recipe import Kept
from parallel.plan.stages import Content
from parallel.shape import FEED_FORWARD_MATRICES, ModelShape


def layer_parameters(shape: ModelShape) -> int:
    """Parameters of one block."""
    attention = 2 * shape.hidden_size * shape.head_dim * (shape.num_heads + shape.num_kv_heads)
    return attention + FEED_FORWARD_MATRICES[shape.ffn] * shape.hidden_size * shape.ffn_size + shape.layer_vectors


def held_parameters(shape: ModelShape, content: Content) -> int:
    """Parameters that a pipeline rank holds, before tensor ranks divide them. A tied table is on both end ranks."""
    table = shape.parameters_embedding
    both = content.embedding and content.head
    tables = (1 if shape.tie_embeddings else 2) if both else int(content.embedding) + int(content.head)
    return content.layers * layer_parameters(shape) + tables * table + (shape.hidden_size if content.head else 0)


def kept_bytes(job: Job, kept: Kept) -> float:
    """Bytes that a block keeps for one micro-batch on a rank, as a table of a recipe says."""
    shape, choice = job.shape, job.choice
    scale = job.element_bytes / 2
    hidden = kept.hidden * shape.hidden_size / (choice.tensor if choice.sequence_parallel else 1)
    query = shape.num_heads * shape.head_dim
    divided = kept.query * query + kept.key_value * shape.num_kv_heads * shape.head_dim
    divided += (kept.gelu if shape.ffn == "gelu" else kept.swiglu) * shape.ffn_size
    divided += shape.num_heads * (kept.scores * job.sequence + kept.statistics)
    return job.tokens * scale * (hidden + divided / choice.tensor)


def block_bytes(job: Job) -> float:
    """Bytes that a block keeps for one micro-batch on a rank, at the job's level of recomputation."""
    if job.choice.recompute == "full":
        divided = job.choice.tensor if job.choice.sequence_parallel else 1
        return job.tokens * job.recipe.block_input * job.element_bytes / 2 * job.shape.hidden_size / divided
    return kept_bytes(job, job.recipe.kept[job.choice.recompute])
