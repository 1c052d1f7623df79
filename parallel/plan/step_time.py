"""Seconds of a training step, by part. Standard library only.

A micro-batch on a pipeline rank takes as long as the device computes and sends, or as long as the host needs to launch that,
whichever is longer. A step is the pipeline's passes, what of the gradients' reduction does not hide, and the optimizer.
"""

from parallel.plan.counting import block_bytes, held_parameters, kept_bytes
from parallel.plan.job import Job
from parallel.plan.links import collective, message
from parallel.plan.stages import Content, contents, pipeline_seconds

TENSOR_MESSAGES = 4
"""Pairs of an all-gather and a reduce-scatter (or all-reduces) of a micro-batch's hidden states per block, forward and
backward: two each way (Narayanan et al., arXiv 2104.04473, section 3.2; Korthikanti et al., arXiv 2205.05198, section
4.2.2)."""


def product_seconds(job: Job, rows: float, inner: float, columns: float, *, block: bool = True) -> float:
    """Seconds of a (rows, inner) x (inner, columns) product: its smallest side decides how much of the peak it reaches. Under
    fp8 a block's products alone are in fp8."""
    constants = job.constants
    efficiency = constants.matmul_efficiency / (1 + constants.matmul_half / min(rows, inner, columns))
    precision = job.precision if block or job.precision != "fp8" else "bf16"
    return 2 * rows * inner * columns / (job.hardware.flops(precision) * efficiency)


def block_products(job: Job) -> float:
    """Seconds of one forward pass of a block's products on a rank."""
    shape, tensor, tokens = job.shape, job.choice.tensor, job.tokens
    query, key = shape.num_heads * shape.head_dim / tensor, max(1, shape.num_kv_heads / tensor) * shape.head_dim
    hidden, ffn = shape.hidden_size, shape.ffn_size / tensor
    gates = 1 if shape.ffn == "gelu" else 2
    return (
        product_seconds(job, tokens, hidden, query + 2 * key)
        + product_seconds(job, tokens, query, hidden)
        + product_seconds(job, tokens, hidden, gates * ffn)
        + product_seconds(job, tokens, ffn, hidden)
    )


def block_attention(job: Job) -> float:
    """Seconds of one forward pass of causal attention on a rank: half of 4 T S d FLOPs where it is computed in tiles, else
    all."""
    width = job.shape.num_heads * job.shape.head_dim / job.choice.tensor
    share = 0.5 if job.recipe.flash else 1.0
    peak = job.hardware.flops("bf16" if job.precision == "fp8" else job.precision) * job.constants.attention_efficiency
    return share * 4 * job.tokens * job.sequence * width / peak


def block_seconds(job: Job) -> dict[str, float]:
    """Seconds of a block's forward and backward pass for one micro-batch, by what the device does."""
    choice, constants = job.choice, job.constants
    products, attention = block_products(job), block_attention(job)
    moved = constants.traffic * kept_bytes(job, job.recipe.kept["none"]) / job.hardware.memory_bandwidth
    parts = {"products": 3 * products, "attention": (3.5 if job.recipe.flash else 3.0) * attention, "pointwise": moved}
    sent = tensor_seconds(job)
    parts["tensor"] = sent
    if choice.recompute == "full":
        parts["recompute"] = products + attention + moved / 3 + sent / 4
    elif choice.recompute == "selective":
        again = 1 - min(1.0, block_bytes(job) / max(1.0, kept_bytes(job, job.recipe.kept["none"])))
        parts["recompute"] = (attention if job.recipe.kept["none"].scores else 0.0) + moved / 3 * again
    return parts


def tensor_seconds(job: Job) -> float:
    """Seconds of a block's tensor-parallel messages that do not hide behind products."""
    tensor = job.choice.tensor
    if tensor == 1:
        return 0.0
    size = job.tokens * job.shape.hidden_size * job.element_bytes
    pair = collective(job, size, tensor, 1, "all_gather") + collective(job, size, tensor, 1, "reduce_scatter")
    return TENSOR_MESSAGES * pair * (1 - job.constants.tensor_overlap)


def host_seconds(job: Job) -> float:
    """Seconds the host needs for a block's launches, forward and backward."""
    constants, tensor = job.constants, job.choice.tensor
    passes = 4 / 3 if job.choice.recompute == "full" else 1.0
    if tensor == 1:
        return passes * constants.layer_seconds
    further = max(0.0, tensor / job.hardware.node_devices - 1)
    return passes * (constants.layer_seconds + constants.hop_seconds * tensor + constants.network_hop_seconds * further)


def head_seconds(job: Job, content: Content) -> float:
    """Seconds of the output head and the loss for one micro-batch, forward and backward."""
    words = job.shape.vocab_size / job.choice.tensor
    moved = job.constants.traffic * job.tokens * words * job.recipe.logit_bytes / 2 / job.hardware.memory_bandwidth
    product = 3 * product_seconds(job, job.tokens, job.shape.hidden_size, words, block=False)
    return product * content.head + moved * content.loss


def rank_parts(job: Job, content: Content) -> dict[str, float]:
    """Seconds of one micro-batch on a pipeline rank, forward and backward, by part."""
    parts = {name: content.layers * seconds for name, seconds in block_seconds(job).items()}
    parts["head"] = head_seconds(job, content)
    parameters = held_parameters(job.shape, content) / job.choice.tensor
    parts["accumulation"] = parameters * job.recipe.accumulation_traffic / job.hardware.memory_bandwidth
    parts["context"] = content.layers * context_seconds(job)
    parts["gather"] = gather_seconds(job, content, sum(parts.values()))
    if job.choice.pipeline > 1:
        divided = job.choice.tensor if job.recipe.divided_messages else 1
        size = job.tokens * job.shape.hidden_size * job.element_bytes / divided
        stride = job.choice.gpus // job.choice.pipeline
        parts["messages"] = 2 * job.choice.virtual_stages * message(job, size, stride)
    busy = sum(parts.values())
    # The head and the embedding launch about as much as a block.
    launches = (content.layers + content.head + 0.5 * content.embedding) * host_seconds(job)
    parts["host"] = max(0.0, launches - busy)
    return parts


def context_seconds(job: Job) -> float:
    """Seconds of a block's exchange of keys and values over context ranks that does not hide behind attention.

    A ring forward, and twice that backward, where gradients travel as well.
    """
    ranks, shape = job.choice.context, job.shape
    if ranks == 1:
        return 0.0
    key = 2 * job.tokens * max(1, shape.num_kv_heads / job.choice.tensor) * shape.head_dim * job.element_bytes
    sent = 3 * collective(job, key * ranks, ranks, job.choice.tensor, "all_gather")
    return max(0.0, sent - 3.5 * block_attention(job))


def gather_seconds(job: Job, content: Content, busy: float) -> float:
    """Seconds of gathering divided weights, and of dividing gradients, for every micro-batch (ZeRO-3), beyond what hides."""
    choice, ranks = job.choice, job.choice.shard * job.choice.context
    if choice.zero < 3 or ranks == 1:
        return 0.0
    weights = held_parameters(job.shape, content) / choice.tensor
    stride = choice.tensor
    gather = collective(job, weights * job.recipe.weight_message_bytes, ranks, stride, "all_gather")
    scatter = collective(job, weights * job.recipe.gradient_bytes, ranks, stride, "reduce_scatter")
    return max(0.0, 2 * gather + scatter - job.constants.data_overlap * busy)


def reduction_seconds(job: Job, content: Content, backward: float) -> float:
    """Seconds of a step's reduction of gradients (and, with ZeRO 1 and 2, of gathering new weights) that do not hide behind the
    last micro-batch's backward pass."""
    choice, recipe = job.choice, job.recipe
    parameters = held_parameters(job.shape, content) / choice.tensor
    data, stride = choice.data_parallel * choice.context, choice.tensor
    if choice.zero >= 3:
        replicas = choice.replicate
        over = parameters / (choice.shard * choice.context)
        exposed = collective(job, over * recipe.gradient_bytes, replicas, stride * choice.shard * choice.context, "all_reduce")
        after = 0.0
    elif choice.zero:
        exposed = collective(job, parameters * recipe.gradient_bytes, data, stride, "reduce_scatter")
        after = collective(job, parameters * recipe.weight_message_bytes, data, stride, "all_gather")
        if recipe.gathers_behind_forward:
            after = max(0.0, after - job.constants.data_overlap * backward / 2)
    else:
        exposed = collective(job, parameters * recipe.gradient_bytes, data, stride, "all_reduce")
        after = 0.0
    return max(0.0, exposed - job.constants.data_overlap * backward) + after


def optimizer_seconds(job: Job, content: Content) -> float:
    """Seconds of the optimizer: its states are read and written once."""
    divided = job.choice.shard * job.choice.context if job.choice.zero else 1
    parameters = held_parameters(job.shape, content) / job.choice.tensor / divided
    return parameters * job.recipe.optimizer_traffic / job.hardware.memory_bandwidth


def step_parts(job: Job) -> dict[str, float]:
    """Seconds of a step by part: those of the slowest pipeline rank, the bubble, what follows the passes; `total` is the
    sum."""
    held = contents(job)
    by_content = {content: rank_parts(job, content) for content in set(held)}
    seconds = [sum(by_content[content].values()) for content in held]
    slowest = max(by_content, key=lambda content: sum(by_content[content].values()))
    count = job.microbatches
    parts = {name: count * value for name, value in by_content[slowest].items()}
    parts["bubble"] = pipeline_seconds(job, seconds) - count * max(seconds)
    backward = 2 / 3 * max(seconds)
    parts["reduction"] = max(reduction_seconds(job, content, backward) for content in by_content)
    parts["optimizer"] = max(optimizer_seconds(job, content) for content in by_content) + job.constants.step_seconds
    parts["total"] = sum(parts.values())
    return parts
