"""Live tensor bytes of Foretrain's own engine on a rank, counted tensor by tensor. Standard library only.

What the decoder's operators save for their backward passes, what FSDP keeps gathered, what the loss in chunks holds. A step
has two moments at which memory may be highest: the loss, when every block's activations and a chunk of logits are there, and
the backward pass of the last block, when its recomputed activations and their gradients are. Measured against real runs:
docs/planner.md.
"""

from parallel.logits import chunk_of
from parallel.names import stage_count
from parallel.plan.counting import held_parameters, layer_parameters
from parallel.plan.job import Job
from parallel.plan.stages import Content, contents, in_flight

MISCELLANEOUS = 140
"""Bytes per token: token ids, targets, documents, rotary angles, the loss's numbers per token."""


def rank_bytes(job: Job, rank: int) -> dict[str, float]:
    """Peak of live tensor bytes on a pipeline rank, by part, without the allocator's share."""
    content, choice = contents(job)[rank], job.choice
    parameters = held_parameters(job.shape, content) / choice.tensor
    wide = 8 if job.precision == "fp64" else 4  # parameters, moments, reduced gradients
    shards = choice.shard * choice.context
    parts = {"weights": parameters * wide / shards, "optimizer": 2 * parameters * wide / shards, "reduction": 0.0}
    gathered = _gathered(job, content, parameters)
    accumulates = job.microbatches > 1
    divided = choice.replicate * shards > 1 or job.precision == "bf16"  # FSDP wraps the model
    # Between micro-batches every rank keeps whole gradients; their shards appear in the last one.
    whole = parameters * wide if accumulates else 0.0
    block, table = layer_parameters(job.shape) / choice.tensor, job.shape.parameters_embedding / choice.tensor
    first = max(table * (content.head or content.embedding), block) * wide
    at_loss = whole
    at_backward = whole + (first if divided else 0.0) if accumulates else first
    at_optimizer = parameters * wide / shards
    kept = content.layers * in_flight(job, rank) * saved_bytes(job)
    quantized = _quantized(job, content)
    loss = loss_bytes(job) if content.head else 0.0
    recomputed, working = _backward(job)
    messages = _messages(job, content)
    moments = {
        "loss": at_loss + gathered[0] + kept + loss,
        "backward": at_backward + gathered[1] + kept + recomputed + working,
        "optimizer": at_optimizer,
    }
    highest = max(moments, key=lambda name: moments[name])
    busy = highest != "optimizer"
    parts["gradients"] = {"loss": at_loss, "backward": at_backward, "optimizer": at_optimizer}[highest]
    parts["gathered"] = {"loss": gathered[0], "backward": gathered[1], "optimizer": 0.0}[highest] + quantized * busy
    parts["activations"] = (kept + (recomputed if highest == "backward" else 0.0)) * busy
    parts["loss"] = loss if highest == "loss" else 0.0
    parts["buffers"] = messages + (working if highest == "backward" else 0.0)
    parts["activations"] += MISCELLANEOUS * job.tokens
    return parts


def norm_bytes(element: int) -> int:
    """Bytes per element that an RMSNorm keeps: input and output, and its normalised value, in bf16 with fp32 copies."""
    return 3 * element if element >= 4 else 10


def saved_bytes(job: Job) -> float:
    """Bytes that a block keeps for one micro-batch."""
    element, choice, shape = job.element_bytes, job.choice, job.shape
    tensor, hidden = choice.tensor, shape.hidden_size
    if choice.recompute == "full":
        return job.tokens * element * hidden / tensor
    query, key = (heads * shape.head_dim / tensor for heads in (shape.num_heads, shape.num_kv_heads))
    statistics = shape.num_heads / tensor * max(4, element)
    if choice.recompute == "none":
        return job.tokens * _all_saved(job, element, query, key, statistics)
    # Block input; the results of all products; attention's output. Under tensor parallelism also what was gathered and
    # scattered.
    gates = 1 if shape.ffn == "gelu" else 2
    results = hidden / tensor + query + 2 * key + query + gates * shape.ffn_size / tensor
    results += 2 * hidden if tensor == 1 else 2 * (hidden + hidden / tensor) + 2 * hidden
    return job.tokens * (element * results + statistics)


def _all_saved(job: Job, element: int, query: float, key: float, statistics: float) -> float:
    """Bytes per token of a block without recomputation."""
    shape, tensor = job.shape, job.choice.tensor
    hidden = shape.hidden_size
    # A norm's output is what the products save: the gathered one, which is whole, under tensor parallelism.
    norms = 2 * ((norm_bytes(element) - element) * hidden / tensor + element * hidden)
    attention = 3 * query + 2 * key  # rotated query, output, output in rows; rotated key, value
    if shape.qk_norm:
        norms += (norm_bytes(element) - element) * (query + key)
    ffn = (2 if shape.ffn == "gelu" else 4) * shape.ffn_size / tensor
    return norms + element * (attention + ffn) + statistics + 8


def _backward(job: Job) -> tuple[float, float]:
    """Bytes in the backward pass of a block beside what all blocks keep: what it recomputed, and gradients on their way."""
    shape, choice, element = job.shape, job.choice, job.element_bytes
    tensor, hidden = choice.tensor, shape.hidden_size
    query, key = (heads * shape.head_dim / tensor for heads in (shape.num_heads, shape.num_kv_heads))
    ffn = shape.ffn_size / tensor
    everything = job.tokens * _all_saved(job, element, query, key, shape.num_heads / tensor * max(4, element))
    working = job.tokens * element * (ffn + hidden)
    if choice.recompute == "none":
        return 0.0, working
    if choice.recompute == "full":
        return everything, working + 2 * job.tokens * element * hidden / tensor
    saved = 2 * query + 2 * key + (1 if shape.ffn == "gelu" else 2) * ffn + hidden / tensor - query
    return everything - job.tokens * element * saved, working


def loss_bytes(job: Job) -> float:
    """Bytes while the loss of a micro-batch is computed: a chunk of logits, gradients of hidden states and of the head, the
    norm."""
    shape, tensor, element, tokens = job.shape, job.choice.tensor, job.element_bytes, job.tokens
    words = shape.vocab_size / tensor
    chunk = chunk_of(int(tokens), shape.hidden_size, int(words), on_cpu=job.hardware.kind == "cpu")
    per_logit = 6 if element == 2 else element
    norm = norm_bytes(element) * shape.hidden_size / tensor
    gathered = element * shape.hidden_size if tensor > 1 else 0.0
    states = tokens * (norm + gathered + element * shape.hidden_size)
    return chunk * words * per_logit + states + words * shape.hidden_size * max(4, element)


def _gathered(job: Job, content: Content, parameters: float) -> tuple[float, float]:
    """Bytes of whole weights that FSDP holds at the loss and in a block's backward pass."""
    choice, element = job.choice, job.element_bytes
    if choice.replicate * choice.shard * choice.context == 1 and job.precision != "bf16":
        return 0.0, 0.0
    if choice.pipeline > 1:  # gathered from the first forward to the last backward pass
        return parameters * element, parameters * element
    block = layer_parameters(job.shape) / choice.tensor * element
    root = parameters * element - content.layers * block
    return root, root + 2 * block


def _messages(job: Job, content: Content) -> float:
    """Bytes of what pipeline stages receive: torch allocates a buffer for every micro-batch, forward and backward."""
    choice = job.choice
    if choice.pipeline == 1:
        return 0.0
    stages = stage_count(choice.pipeline, choice.pipeline_schedule, choice.virtual_stages) // choice.pipeline
    ends = int(content.embedding) + int(content.head)
    hidden = job.tokens * job.shape.hidden_size * job.element_bytes / choice.tensor
    return (2 * stages - ends) * job.microbatches * hidden


def _quantized(job: Job, content: Content) -> float:
    """Bytes of rounded weights, which the products of a block save beside the weights themselves.

    Without recomputation all blocks keep theirs until their backward passes, else one block at a time.
    """
    if not job.extra.get("quant"):
        return 0.0
    layers = content.layers if job.choice.recompute == "none" else min(1, content.layers)
    return layers * layer_parameters(job.shape) / job.choice.tensor * job.element_bytes
