"""The bit widths that a run's blocks of weights have learned: their histograms, and a picture of these."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PICTURE = "bit_widths.png"

Histogram = Mapping[str, int]
"""Bit width, in quarters of a bit -> number of blocks."""


def histograms(widths: Mapping[str, Sequence[float]]) -> dict[str, dict[str, int]]:
    """For every matrix, its bit widths and how many of its blocks have them, to the nearest quarter of a bit."""
    counts = {name: Counter(round(4 * width) / 4 for width in of_blocks) for name, of_blocks in widths.items()}
    return {name: {f"{width:g}": count for width, count in sorted(of.items())} for name, of in counts.items()}


def summary(of_matrices: Mapping[str, Histogram]) -> str:
    """Mean and range over all blocks, in words."""
    blocks = _together(of_matrices.values())
    mean = sum(width * count for width, count in blocks.items()) / sum(blocks.values())
    return f"{mean:.2f} on average, {min(blocks):g} to {max(blocks):g} over {sum(blocks.values()):,} blocks"


def _together(of_matrices: Iterable[Histogram]) -> Counter[float]:
    blocks: Counter[float] = Counter()
    for histogram in of_matrices:
        blocks.update({float(width): count for width, count in histogram.items()})
    return blocks


def draw_bit_widths(run: Path, of_matrices: Mapping[str, Histogram]) -> None:
    """Draw `<run>/bit_widths.png`: the share of blocks at each width, for every layer and for every kind of matrix. Nothing if
    there are no widths."""
    if not of_matrices:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers: dict[str, list[Histogram]] = {}
    kinds: dict[str, list[Histogram]] = {}
    for name, histogram in of_matrices.items():
        layers.setdefault(_part(name, True), []).append(histogram)
        kinds.setdefault(_part(name, False), []).append(histogram)
    widths = sorted(_together(of_matrices.values()))
    first, last = math.floor(widths[0]) - 1, math.ceil(widths[-1]) + 1  # empty columns beside: else one width is all black
    columns = [first + step / 4 for step in range(4 * (last - first) + 1)]
    height = 1.6 + 0.22 * max(len(layers), len(kinds))
    figure, panels = pyplot.subplots(1, 2, figsize=(10, min(height, 12)), layout="constrained")
    for axes, title, rows in ((panels[0], "layer", layers), (panels[1], "matrix", kinds)):
        shares = []
        for of_row in rows.values():
            blocks = _together(of_row)
            shares.append([blocks[width] / sum(blocks.values()) for width in columns])
        image = axes.imshow(shares, aspect="auto", cmap="Greys", vmin=0, vmax=1)
        axes.set_yticks(range(len(rows)), list(rows))
        every = max(1, len(columns) // 8)
        axes.set_xticks(range(0, len(columns), every), [f"{width:g}" for width in columns[::every]])
        axes.set(xlabel="bits", ylabel=title)
    figure.colorbar(image, ax=panels, label="share of the blocks")
    figure.suptitle(f"{run.name}: bit widths, {summary(of_matrices)}")
    figure.savefig(run / PICTURE, dpi=150)
    pyplot.close(figure)


def _part(name: str, layer: bool) -> str:
    """The layer of a matrix, or its kind; the name itself of one that is in no layer."""
    words = name.removesuffix(".weight").split(".")
    if words[0] != "blocks":
        return ".".join(words)
    return words[1] if layer else ".".join(words[2:])
