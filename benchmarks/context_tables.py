"""Errors of the methods of context parallelism in bf16, and how evenly partitions spread the work.

    .venv/bin/python -m benchmarks.context_tables errors
    .venv/bin/python -m benchmarks.context_tables balance

`errors`: root mean square error over root mean square value of the output and of the gradients of queries, keys and values,
against dense attention in float64 from the same bf16 input; causal, zigzag, 8 query heads to 2 key/value heads of 64.
`balance`: (query, key) pairs of the busiest rank over the mean, for documents of log-normal lengths; mean (largest) of 20 rows.
"""

import argparse
import statistics

import torch

from parallel.context.choose import METHODS
from parallel.context.names import PartitionName
from parallel.context.partition import Partition
from tests.support.context_attention import packed, relative_errors
from tests.support.group import Group

SEQUENCE = 2048
PARTITIONS: tuple[PartitionName, ...] = ("contiguous", "zigzag", "balanced")


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("errors", "balance"))
    errors() if parser.parse_args().table == "errors" else balance()


def errors() -> None:
    """Print the errors of every method by number of ranks."""
    by_ranks = {ranks: relative_errors(Group(ranks), METHODS, SEQUENCE) for ranks in (1, 2, 4, 8)}
    print("| method | ranks | output | query gradient | key gradient | value gradient |\n|---|---|---|---|---|---|")
    for method in METHODS:
        for ranks, by_method in by_ranks.items():
            print(f"| {method} | {ranks} | " + " | ".join(f"{error:.2e}" for error in by_method[method]) + " |")


def balance() -> None:
    """Print the imbalance of every partition by number of ranks."""
    print("| tokens | documents | ranks | " + " | ".join(PARTITIONS) + " |\n|" + "---|" * (3 + len(PARTITIONS)))
    for sequence in (8192, 32768):
        for median in (None, 150, 1000):
            rows = [packed(sequence, median, seed) for seed in range(20)] if median else [torch.zeros(1, sequence)]
            for ranks in (2, 4, 8):
                cells = [f"{sequence:,}", f"median {median}" if median else "one", str(ranks)]
                for name in PARTITIONS:
                    imbalances = [Partition.of(row, ranks, name).imbalance() for row in rows]
                    spread = f" ({max(imbalances):.3f})" if len(imbalances) > 1 else ""
                    cells.append(f"{statistics.mean(imbalances):.3f}{spread}")
                print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
