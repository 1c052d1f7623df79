"""A cost model of context parallelism: the seconds that each method needs for one attention call, and the fastest method.

Every method is a sequence of steps. In a step attention and messages run at the same time; the next step begins when both are
done. The messages are those of `token_ring.py`, `ring.py` and `ulysses.py` for rows of a single document: packed documents only
remove work and messages. Pure functions that need the standard library only, so that a planner can call them.

Not modelled: merging, packing and memory. Bytes are per rank; a chunk is half of a rank's tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from parallel.context.names import Method, heads_divide

METHODS: tuple[Method, ...] = ("ring", "ring_bidirectional", "token_ring", "ulysses")
Topology = Literal["mesh", "switch"]

BACKWARD_FLOPS = 2.5
"""FLOPs of a backward over those of a forward pass: five matrix products instead of two (Dao, FlashAttention-2, arXiv
2307.08691, section 4.1)."""


@dataclass(frozen=True)
class AttentionCall:
    """Attention of one layer over `sequence` tokens that `ranks` share: zigzag if causal, else contiguous.

    Attributes:
        batch: sequences in the call.
        element_bytes: bytes per element of the compute dtype, in which all messages are sent except log-sum-exps and, in a
            ring, the gradients of keys and values: these have at least 4 bytes per element.
    """

    ranks: int
    sequence: int
    heads: int
    kv_heads: int
    head_dim: int
    batch: int = 1
    element_bytes: int = 2
    causal: bool = True

    @property
    def chunk(self) -> float:
        """Tokens in a chunk, over all sequences of the batch."""
        return self.batch * self.sequence / (2 * self.ranks)

    @property
    def wide_bytes(self) -> int:
        """Bytes per element of accumulated values."""
        return max(4, self.element_bytes)

    def flops(self, pairs: float, *, backward: bool) -> float:
        """FLOPs of attention over `pairs` pairs of a chunk of queries and a chunk of keys, in all heads."""
        forward = 4.0 * pairs * self.chunk * self.sequence / (2 * self.ranks) * self.heads * self.head_dim
        return forward * (BACKWARD_FLOPS if backward else 1.0)


@dataclass(frozen=True)
class Machine:
    """The links and the speed of the ranks.

    Attributes:
        topology: mesh: every two ranks have a link of their own; switch: every rank has one port. Both carry the full bandwidth
            in both directions at once.
        bandwidth: bytes/s of a link or port, in each direction.
        matmul_rate: FLOP/s that an attention kernel reaches on one rank, not the peak of the data sheet.
        latency: seconds before a message begins to move.
    """

    topology: Topology
    bandwidth: float
    matmul_rate: float
    latency: float = 0.0

    def __str__(self) -> str:
        what = "links" if self.topology == "mesh" else "ports"
        rates = f"{self.bandwidth / 1e9:.3g} GB/s, {self.latency * 1e6:.3g} us, {self.matmul_rate / 1e12:.3g} TFLOP/s"
        return f"a {self.topology} with {what} of {rates}"


ASSUMED: dict[str, dict[Topology, Machine]] = {
    # NVSwitch of an H100: NVLink has 900 GB/s, both directions together (data sheet). A full mesh is assumed to consist of the
    # Infinity Fabric links of an MI300X: 128 GB/s each, both directions together (data sheet). FlashAttention-2 reaches up to
    # 335 TFLOP/s on an H100 (arXiv 2307.08691, section 4.1). Latencies were not measured.
    "cuda": {"switch": Machine("switch", 450e9, 335e12), "mesh": Machine("mesh", 64e9, 335e12)},
    # Measured on two cores of a cloud machine: gloo over loopback, 1.24 GB/s in each direction, 60 microseconds; torch's flash
    # attention in fp32, causal, 58 GFLOP/s on one core.
    "cpu": {topology: Machine(topology, 1.24e9, 58e9, 60e-6) for topology in ("switch", "mesh")},
}
"""The machine assumed for a type of device if nothing else is known."""

Message = tuple[int, int, float]
"""Source, target, bytes."""


@dataclass(frozen=True)
class Step:
    """FLOPs of every rank and messages, which run at the same time. A rank's next step begins when its own part is done."""

    flops: Sequence[float]
    messages: Sequence[Message] = ()


def duration(steps: Sequence[Step], machine: Machine) -> float:
    """Seconds until the last rank is done.

    A message moves once both of its ranks have begun the step; it shares its link (mesh) or ports (switch) with others.
    """
    now = [0.0] * len(steps[0].flops)
    for step in steps:
        ends = [begun + flops / machine.matmul_rate for begun, flops in zip(now, step.flops, strict=True)]
        loads: dict[tuple[str, int, int], float] = {}
        messages = [message for message in step.messages if message[2]]
        for source, target, size in messages:
            for channel in _channels(machine.topology, source, target):
                loads[channel] = loads.get(channel, 0.0) + size
        for source, target, _ in messages:
            moved = max(loads[channel] for channel in _channels(machine.topology, source, target)) / machine.bandwidth
            end = max(now[source], now[target]) + machine.latency + moved
            ends[source], ends[target] = max(ends[source], end), max(ends[target], end)
        now = ends
    return max(now)


def _channels(topology: Topology, source: int, target: int) -> list[tuple[str, int, int]]:
    """The links or ports that a message from `source` to `target` shares with others."""
    return [("link", source, target)] if topology == "mesh" else [("out", source, source), ("in", target, target)]


def seconds(method: Method, call: AttentionCall, machine: Machine, *, backward: bool = True) -> float:
    """Predicted seconds of one attention call: forward, or forward and backward."""
    passes = (False, True) if backward else (False,)
    return sum(duration(steps(method, call, backward=which), machine) for which in passes)


def steps(method: Method, call: AttentionCall, *, backward: bool) -> list[Step]:
    """The steps of a method in a forward or in a backward pass."""
    if method == "ulysses":
        return _ulysses(call, backward)
    if method == "token_ring":
        return list(_token_ring(call, backward))
    if method == "ring" or method == "ring_bidirectional":
        return list(_ring(call, backward, bidirectional=method == "ring_bidirectional"))
    assert_never(method)


def obstacle(method: Method, call: AttentionCall) -> str | None:
    """Why a method cannot do a call; None if it can."""
    if method != "ulysses" or heads_divide(call.heads, call.kv_heads, call.ranks):
        return None
    return f"{call.heads} query and {call.kv_heads} key/value heads do not divide among {call.ranks} ranks"


def choose(call: AttentionCall, machine: Machine, *, backward: bool = True) -> tuple[Method, str]:
    """The method with the least predicted time, and the reason in one line.

    Among equally fast methods the first in the order of `METHODS`.
    """
    if call.ranks == 1:
        return METHODS[0], "a single rank sends nothing"
    impossible = {method: why for method in METHODS if (why := obstacle(method, call))}
    times = {method: seconds(method, call, machine, backward=backward) for method in METHODS if method not in impossible}
    best, *others = sorted(times, key=lambda method: times[method])
    alternatives = [f"{method} {times[method] * 1e3:.3g} ms" for method in others]
    alternatives += [f"{method} not possible ({why})" for method, why in impossible.items()]
    passes = "forward and backward" if backward else "forward"
    reason = f"{times[best] * 1e3:.3g} ms a layer, {passes}, predicted for {call.sequence:,} tokens on {machine}"
    return best, f"{reason}; {', '.join(alternatives)}"


def _token_ring(call: AttentionCall, backward: bool) -> Iterator[Step]:
    """Queries go to the previous rank, their first half while a later rank needs it; results go straight to their owner."""
    ranks = call.ranks
    rows = call.chunk * call.heads * call.head_dim * call.element_bytes
    numbers = call.chunk * call.heads * call.wide_bytes  # of log-sum-exps; as much for `delta` in a backward pass
    query_bytes, result_bytes = (2 * rows + 2 * numbers, rows) if backward else (rows, rows + numbers)
    for step in range(ranks + 1):
        messages: list[Message] = []
        for rank in range(ranks):
            if step + 1 < ranks:
                origin = (rank + step) % ranks
                messages.append((rank, (rank - 1) % ranks, _chunks(call, step + 1 <= origin) * query_bytes))
            if step >= 2:
                owner = (rank + step - 1) % ranks
                messages.append((rank, owner, _chunks(call, rank < owner) * result_bytes))
        yield Step([call.flops(2 if call.causal else 4, backward=backward) * (step < ranks)] * ranks, messages)


def _ring(call: AttentionCall, backward: bool, *, bidirectional: bool) -> Iterator[Step]:
    """Keys and values go to the next rank, or half of them to the previous one; in a backward pass their gradients too."""
    ranks = call.ranks
    elements = 2 * call.chunk * call.kv_heads * call.head_dim
    streams = ((1, (0,)), (-1, (1,))) if bidirectional else ((1, (0, 1)),)
    for step in range(ranks + 1 if backward else ranks):
        messages: list[Message] = []
        for rank in range(ranks):
            for direction, halves in streams:
                to = (rank + direction) % ranks
                if step + 1 < ranks:
                    origin = (rank - direction * step) % ranks
                    chunks = sum(_travels(call, half, direction, origin, step + 1) for half in halves)
                    messages.append((rank, to, chunks * elements * call.element_bytes))
                if backward and step >= 2:
                    origin = (rank - direction * (step - 1)) % ranks
                    chunks = sum(_used(call, half, direction, origin, step - 1) for half in halves)
                    messages.append((rank, to, chunks * elements * call.wide_bytes))
        pairs = [
            sum(_pairs(call, rank, half, (rank - direction * step) % ranks) for direction, halves in streams for half in halves)
            for rank in range(ranks)
        ]
        yield Step([call.flops(of_rank, backward=backward) * (step < ranks) for of_rank in pairs], messages)


def _ulysses(call: AttentionCall, backward: bool) -> list[Step]:
    """Nothing overlaps: exchanges of queries, of keys and of values, then attention, then the exchange of the output."""
    ranks = call.ranks
    query_bytes, key_bytes = (
        2 * call.chunk * heads * call.head_dim * call.element_bytes
        for heads in (call.heads / ranks, max(1.0, call.kv_heads / ranks))
    )

    def exchange(size: float) -> Step:
        pairs = [(source, target) for source in range(ranks) for target in range(ranks) if source != target]
        return Step([0.0] * ranks, [(source, target, size) for source, target in pairs])

    attention = Step([call.flops(2 * ranks if call.causal else 4 * ranks, backward=backward)] * ranks)
    exchanges = [exchange(query_bytes), exchange(key_bytes), exchange(key_bytes), attention, exchange(query_bytes)]
    return exchanges[::-1] if backward else exchanges


def _chunks(call: AttentionCall, whole: bool) -> int:
    """Chunks of a rank's queries that are needed: both or, under a causal mask and unless `whole`, the second alone."""
    return 2 if whole or not call.causal else 1


def _travels(call: AttentionCall, half: int, direction: int, origin: int, step: int) -> bool:
    """Whether a half of the keys of rank `origin` still travels at a step. All ranks need the first half, those below
    `origin` the second."""
    return half == 0 or not call.causal or (origin > 0 if direction == 1 else step <= origin)


def _used(call: AttentionCall, half: int, direction: int, origin: int, step: int) -> bool:
    """Whether another rank has used that half in steps 1 to `step`."""
    return half == 0 or not call.causal or (origin + step >= call.ranks if direction == 1 else origin > 0)


def _pairs(call: AttentionCall, rank: int, half: int, origin: int) -> float:
    """Pairs of chunks of `rank`'s queries with that half of `origin`'s keys; a pair on the diagonal counts half."""
    if not call.causal:
        return 2.0
    diagonal = 0.5 * (rank == origin)
    return 1.0 + (rank > origin) + diagonal if half == 0 else (rank < origin) + diagonal
