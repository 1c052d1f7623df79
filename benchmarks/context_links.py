"""The methods of context parallelism on slow links, measured and predicted by the cost model.

    .venv/bin/python -m benchmarks.context_links [--rounds 7] [--megabits 25] [--figure FILE.png]

Four ranks in network namespaces (needs Linux, root and iproute2; otherwise it says what is missing and exits with 2), on a mesh
with a link between every two ranks, and on a switch with a port for every rank. Links and ports are limited in both directions.
Bf16, causal, zigzag. Every round runs all methods; times are medians over rounds of the slowest rank's time. The baseline
all_gather gathers the keys and values of all ranks at once, saves them for the backward pass, and sends gradients in fp32.
Seven rounds take about twelve minutes.

The cost model gets two measured rates: that of one message over a link, and that of the attention kernel alone, running on all
ranks at once. The share of transfers is the fraction of a method's time that disappears without the limits.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

from benchmarks.network import Network, UnavailableError, isolate, serve
from parallel.context.choose import METHODS, AttentionCall, Machine, Step, Topology, choose, duration, seconds

RANKS = 4
HEADS, HEAD_DIM = 8, 128
RATIOS = (1, 4)  # query heads per key/value head
GATHER = "all_gather"
KERNEL = "kernel"  # only a rank's share of the attention
ALL = (*METHODS, GATHER)
PROBE_BYTES = 2**19
NEAR = 1.1


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table. Seconds by method: `measured` with limits, `free` without, `predicted` by the cost model."""

    topology: Topology
    call: AttentionCall
    backward: bool
    measured: dict[str, float]
    free: dict[str, float]
    predicted: dict[str, float]
    chosen: str

    def chosen_over_fastest(self, among: Sequence[str] = METHODS) -> float:
        """Measured time of the method that the cost model chooses over that of the fastest, among some methods."""
        chosen = self.chosen if self.chosen in among else min(among, key=lambda method: self.predicted[method])
        return self.measured[chosen] / min(self.measured[method] for method in among)


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["rank"]:
        serve(Rank(int(sys.argv[2])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabits", type=float, default=25.0, help="megabits/s of every link or port, in each direction")
    parser.add_argument("--topology", nargs="+", choices=get_args(Topology), default=get_args(Topology))
    parser.add_argument("--tokens", nargs="+", type=int, default=(512, 1024), help="tokens in a sequence")
    parser.add_argument("--figure", help="file of the figure")
    arguments = parser.parse_args()
    cases: list[Case] = []
    try:
        isolate()
        for topology in arguments.topology:
            with Network(topology, RANKS, "benchmarks.context_links") as network:
                cases += _measure(network, arguments.rounds, int(arguments.megabits * 1e6), arguments.tokens)
    except UnavailableError as error:
        print(f"skipped, no emulated network here: {error}")
        sys.exit(2)
    _report(cases)
    if arguments.figure:
        _draw(cases, arguments.figure)


def _measure(network: Network, rounds: int, bits: int, sequences: Sequence[int]) -> Iterator[Case]:
    calls = [AttentionCall(RANKS, sequence, HEADS, HEADS // ratio, HEAD_DIM) for ratio in RATIOS for sequence in sequences]
    kinds = [(call, backward) for call in calls for backward in (False, True)]
    questions = [
        {"method": method, "call": dataclasses.asdict(call), "backward": backward} for call, backward in kinds for method in ALL
    ]

    def medians(rounds: int) -> list[float]:
        """Median seconds of every question, after a round that does not count."""
        times = [[max(network.ask(question)) for question in questions] for _ in range(rounds + 1)]
        return [statistics.median(of_question) for of_question in zip(*times[1:], strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        network.ask({"store": os.path.join(folder, "store")})
        network.limit(None)
        free = medians(max(3, rounds // 2))
        kernel = [
            statistics.median(
                max(network.ask({"method": KERNEL, "call": dataclasses.asdict(call), "backward": backward}))
                for _ in range(rounds)
            )
            for call, backward in kinds
        ]
        network.limit(bits)
        crossing = statistics.median(max(network.ask({"probe": PROBE_BYTES})) for _ in range(rounds))
        print(f"{network.topology}: {PROBE_BYTES / crossing / 1e6:.2f} MB/s of {bits / 8e6:.2f}; load {os.getloadavg()[0]:.1f}")
        limited = medians(rounds)
    for number, (call, backward) in enumerate(kinds):
        start = number * len(ALL)
        measured = dict(zip(ALL, limited[start : start + len(ALL)], strict=True))
        unlimited = dict(zip(ALL, free[start : start + len(ALL)], strict=True))
        flops = RANKS * sum(call.flops(2, backward=which) for which in (False, True)[: 1 + backward])
        machine = Machine(network.topology, PROBE_BYTES / crossing, flops / kernel[number])
        predicted = {method: predict(method, call, machine, backward=backward) for method in ALL}
        chosen, _ = choose(call, machine, backward=backward)
        yield Case(network.topology, call, backward, measured, unlimited, predicted, chosen)


def predict(method: str, call: AttentionCall, machine: Machine, *, backward: bool) -> float:
    """Predicted seconds of a method, or of the baseline."""
    if method != GATHER:
        return seconds(method, call, machine, backward=backward)  # type: ignore[arg-type]
    pairs = [(source, target) for source in range(RANKS) for target in range(RANKS) if source != target]
    elements = 2 * 2 * call.chunk * call.kv_heads * call.head_dim  # keys and values, two chunks of each

    def steps(element_bytes: int) -> Step:
        return Step([0.0] * RANKS, [(source, target, elements * element_bytes) for source, target in pairs])

    of_call = [steps(call.element_bytes), Step([RANKS * call.flops(2, backward=False)] * RANKS)]
    if backward:
        of_call += [Step([RANKS * call.flops(2, backward=True)] * RANKS), steps(call.wide_bytes)]
    return duration(of_call, machine)


class Rank:
    """Answers a question on a rank with the seconds that something took."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, question: dict[str, Any]) -> float:
        """Join the store, send bytes from rank 0 to rank 1, or run an attention call, as the question says."""
        import torch
        import torch.distributed as dist

        if "store" in question:
            torch.set_num_threads(1)
            url = f"file://{question['store']}"
            dist.init_process_group("gloo", init_method=url, rank=self.rank, world_size=RANKS)
            return 0.0
        run = self._probe(question["probe"]) if "probe" in question else self._attention(**question)
        dist.barrier()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def _probe(self, size: int) -> Callable[[], None]:
        import torch
        import torch.distributed as dist

        from parallel.context.local import Transfers

        assert dist.group.WORLD is not None
        transfers, tensor = Transfers(dist.group.WORLD), torch.zeros(size, dtype=torch.uint8)
        if self.rank == 0:
            transfers.add([tensor], 1, [], 1)
        elif self.rank == 1:
            transfers.add([], 0, [tensor], 0)
        return lambda: transfers.post().wait()

    def _attention(self, method: str, call: dict[str, Any], backward: bool) -> Callable[[], None]:
        import torch
        import torch.distributed as dist

        from benchmarks.context_gather import gathered_attention
        from parallel.context.local import LocalAttention
        from parallel.context.protocol import ContextParallel

        assert dist.group.WORLD is not None
        shape = AttentionCall(**call)
        named = "ring" if method in (GATHER, KERNEL) else method
        context = ContextParallel(dist.group.WORLD, named)  # type: ignore[arg-type]
        partition = context.partition(torch.zeros(1, shape.sequence, dtype=torch.int64))
        draw = torch.Generator().manual_seed(self.rank)
        query, key, value, gradient = (
            torch.randn(1, heads, shape.sequence // RANKS, shape.head_dim, generator=draw).bfloat16()
            for heads in (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
        )
        for tensor in (query, key, value):
            tensor.requires_grad_(backward)
        scale = shape.head_dim**-0.5
        whole = (1, shape.heads // RANKS, shape.sequence, shape.head_dim)
        share = query.detach().view(whole).requires_grad_(backward)

        def run() -> None:
            if method == GATHER:
                output = gathered_attention(query, key, value, LocalAttention(partition, scale), context.group)
            elif method == KERNEL:
                output = torch.nn.functional.scaled_dot_product_attention(share, share, share, is_causal=True)
            else:
                output = context.attend(query, key, value, partition, scale)
            if backward:
                output.backward(gradient.view_as(output))

        return run


def _report(cases: Sequence[Case]) -> None:
    print("\nMilliseconds, measured / predicted (share of transfers).\n")
    print(f"| topology | heads | tokens | passes | {' | '.join(ALL)} | fastest | chosen | chosen / fastest |")
    print("|" + "---|" * (7 + len(ALL)))
    for case in cases:
        cells = [case.topology, f"{case.call.heads}:{case.call.kv_heads}", f"{case.call.sequence:,}", _passes(case)]
        for method in ALL:
            measured, share = case.measured[method], 1 - case.free[method] / case.measured[method]
            cells.append(f"{measured * 1e3:.0f} / {case.predicted[method] * 1e3:.0f} ({share:.0%})")
        fastest = min(METHODS, key=lambda method: case.measured[method])
        cells += [fastest, case.chosen, f"{case.chosen_over_fastest():.2f}"]
        print("| " + " | ".join(cells) + " |")
    without_ulysses = [method for method in METHODS if method != "ulysses"]
    for suffix, among in (("", METHODS), (" without ulysses", without_ulysses)):
        ratios = [case.chosen_over_fastest(among) for case in cases]
        near = sum(ratio <= NEAR for ratio in ratios)
        print(f"\nchosen within 10 % of the fastest{suffix}: {near} of {len(cases)}; worst {max(ratios):.2f}")
    errors = {method: [case.measured[method] / case.predicted[method] for case in cases] for method in ALL}
    print("\n| measured / predicted | median | from | to |\n|---|---|---|---|")
    for method, ratios in errors.items():
        print(f"| {method} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |")
    shares = [1 - case.free[method] / case.measured[method] for case in cases for method in ALL]
    print(f"\ntransfers: {min(shares):.0%} to {max(shares):.0%} of a call, median {statistics.median(shares):.0%}")


def _passes(case: Case) -> str:
    return "forward and backward" if case.backward else "forward"


def _draw(cases: Sequence[Case], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    longest = [case for case in cases if case.call.sequence == max(case.call.sequence for case in cases)]
    figure, axes = plt.subplots(2, len(longest) // 2, figsize=(12, 6.2), layout="constrained")
    for axis, case in zip(axes.flat, longest, strict=True):
        places = range(len(ALL))
        axis.barh(places, [case.measured[method] * 1e3 for method in ALL], color="tab:blue", alpha=0.5, label="measured")
        axis.plot([case.predicted[method] * 1e3 for method in ALL], places, "|", color="black", ms=16, mew=2, label="predicted")
        axis.set_yticks(places, ALL)
        axis.invert_yaxis()
        axis.set_title(f"{case.topology}, heads {case.call.heads}:{case.call.kv_heads}\n{_passes(case)}", fontsize=9)
        axis.set_xlabel("ms")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
