"""The structure of the code, counted over its import graph: rooms, floors, arrows, circles, the longest files and functions.

    python -m benchmarks.house [--tree DIR] [--picture docs/house.png]

A room is a package, or a file, directly inside `train/` or `scaling/`; the other packages are rooms themselves. An arrow is a
pair of rooms, one of which imports the other. A room stands one floor above the highest one that it imports. A circle is a set
of rooms, or of files, that all reach each other.
"""

import argparse
import ast
import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grimp
from rich.console import Console
from rich.table import Table

HOUSES = ("launch", "train", "scaling", "parallel", "quant", "schedulers", "common")
SPLIT = ("train", "scaling")  # whose own packages are rooms
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60

Arrows = dict[str, set[str]]
"""Room -> the rooms that it imports."""


@dataclass(frozen=True)
class Plan:
    """The rooms of one house, and what they import of each other."""

    arrows: Arrows
    floors: dict[str, int]
    circles: list[set[str]]


def main() -> int:
    """Print the tables. Returns 1 where there is a circle, or a file or function that is too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).resolve().parent.parent, help="the checkout to look at")
    parser.add_argument("--picture", type=Path, help="also draw the house, as a PNG file")
    arguments = parser.parse_args()
    tree = arguments.tree.resolve()
    sys.path.insert(0, str(tree))
    importlib.invalidate_caches()
    houses = [name for name in HOUSES if (tree / name).is_dir()]
    imports = _imports(houses)
    table = Table(
        "", "rooms", "floors", "arrows", "circles", "files", "floors of files", "circles of files", title=str(tree.name)
    )
    for house in houses:
        inside = {
            one: {other for other in others if _house(other) == house}
            for one, others in imports.items()
            if _house(one) == house
        }
        rooms, files = plan(_by_room(inside, house)), plan(inside)
        counts = (len(rooms.arrows), 1 + max(rooms.floors.values()), _count(rooms.arrows), len(rooms.circles))
        table.add_row(
            house, *map(str, counts), *map(str, (len(files.arrows), 1 + max(files.floors.values()), len(files.circles)))
        )
        for circle in files.circles:
            print(f"a circle in {house}: {', '.join(sorted(circle))}")
    Console().print(table)
    long = list(too_long(tree, houses))
    print("\n".join(long) or f"no file over {MOST_LINES} lines, no function over {MOST_LINES_OF_A_FUNCTION}")
    if arguments.picture is not None:
        draw(imports, houses, arguments.picture)
    return int(bool(long) or any(plan(imports).circles))


def _imports(houses: list[str]) -> Arrows:
    """File -> the files of the project that it imports."""
    graph = grimp.build_graph(*houses, include_external_packages=False, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def _house(module: str) -> str:
    return module.split(".")[0]


def _by_room(imports: Arrows, house: str) -> Arrows:
    """The same between rooms. A package's own `__init__` is the room itself, not one more."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    rooms: Arrows = {}
    for one, others in imports.items():
        if one != house:
            rooms.setdefault(room(one), set()).update(room(other) for other in others if other != house)
    return {name: {other for other in others if other != name} for name, others in rooms.items()}


def plan(arrows: Arrows) -> Plan:
    """Floors and circles of a graph. The rooms of a circle share a floor."""
    components = strongly_connected(arrows)
    of = {room: number for number, component in enumerate(components) for room in component}
    floor: dict[int, int] = {}
    for number, component in enumerate(components):  # those that a component imports come before it
        below = {of[other] for room in component for other in arrows[room] if other in of and of[other] != number}
        floor[number] = 1 + max((floor[other] for other in below), default=-1)
    return Plan(
        arrows, {room: floor[of[room]] for room in arrows}, [component for component in components if len(component) > 1]
    )


def strongly_connected(arrows: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """The strongly connected components, those that others point to first (Tarjan, SIAM J. Comput. 1(2), 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows[node]):
            if other not in arrows:
                continue
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            start = stack.index(node)
            components.append(set(stack[start:]))
            del stack[start:]

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return components


def _count(arrows: Arrows) -> int:
    return sum(len(others) for others in arrows.values())


def too_long(tree: Path, houses: Iterable[str]) -> Iterable[str]:
    """A line for every file and function that is over its limit."""
    for path in sorted(path for house in houses for path in (tree / house).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if (lines := source.count("\n")) > MOST_LINES:
            yield f"{path.relative_to(tree)} has {lines} lines"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > MOST_LINES_OF_A_FUNCTION:
                    yield f"{path.relative_to(tree)}: {node.name} has {size} lines"


def draw(imports: Arrows, houses: list[str], path: Path) -> None:
    """The rooms as boxes on their floors, the packages that are split with their own rooms inside."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import FancyBboxPatch

    figure, axes = pyplot.subplots(figsize=(13, 9.5), layout="constrained")
    storeys: list[tuple[str, ...]] = [("common",), ("parallel", "quant", "schedulers", "scaling"), ("train",), ("launch",)]
    height = 0.0
    for storey in storeys:
        inner = {house: _floors_of(imports, house) if house in SPLIT else [] for house in storey}
        tall = max(1, *(len(floors) for floors in inner.values())) * 0.8 + 0.55
        widths = {house: max(2.0, 2.3 * max((len(rooms) for rooms in inner[house]), default=1)) for house in storey}
        scale = 14.0 / (sum(widths.values()) + 0.3 * (len(storey) - 1))
        left = 0.0
        for house in storey:
            width = widths[house] * scale
            axes.add_patch(
                FancyBboxPatch((left, height), width, tall, boxstyle="round,pad=0.02", facecolor="0.95", edgecolor="0.3")
            )
            axes.text(left + width / 2, height + tall - 0.22, house, ha="center", va="center", weight="bold", fontsize=12)
            if not inner[house]:
                names = sorted({module.split(".")[1] for module in imports if module.startswith(f"{house}.")})
                words = ", ".join(names) if len(storey) == 1 else "\n".join(names)
                axes.text(left + width / 2, height + tall - 0.45, words, ha="center", va="top", fontsize=9)
            for level, rooms in enumerate(inner[house]):
                for number, room in enumerate(rooms):
                    step = width / len(rooms)
                    box = (left + number * step + 0.06, height + 0.1 + 0.8 * level)
                    axes.add_patch(
                        FancyBboxPatch(box, step - 0.12, 0.55, boxstyle="round,pad=0.02", facecolor="white", edgecolor="0.6")
                    )
                    axes.text(box[0] + step / 2 - 0.06, box[1] + 0.28, room, ha="center", va="center", fontsize=9)
            left += width + 0.3 * scale
        height += tall + 0.25
    axes.set(xlim=(-0.1, 14.3), ylim=(-0.1, height))
    axes.set_title("An import goes down, never up; rooms on one floor do not know each other", fontsize=11)
    axes.axis("off")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _floors_of(imports: Arrows, house: str) -> list[list[str]]:
    """The rooms of a house, by floor."""
    inside = {
        one: {other for other in others if _house(other) == house} for one, others in imports.items() if _house(one) == house
    }
    floors = plan(_by_room(inside, house)).floors
    return [
        sorted(room.split(".")[1] for room, floor in floors.items() if floor == level)
        for level in range(1 + max(floors.values()))
    ]


if __name__ == "__main__":
    sys.exit(main())
