import inspect
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.group import Group

# Two workers share two cores, and every rank of a group is a process: more threads than one a process wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "120"  # tables and messages are as wide wherever the tests run

# No test asserts on the clock: a busy machine is no failure. `make test-slow` tries the larger number of examples.
settings.register_profile("foretrain", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile("foretrain")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=["gloo", "nccl"], default="gloo", help="of the groups of processes; nccl: on GPUs")


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """What starts processes is marked by the names it uses, so that no test can be forgotten."""
    for item in items:
        definitions = item._fixtureinfo.name2fixturedefs
        fixtures = [made[-1].func for name in item.fixturenames if (made := definitions.get(name))]
        if {"console", "group", "small_runs", "subprocess"} & {*item.fixturenames, *_names_in(item.function, *fixtures)}:
            item.add_marker("processes")


def _names_in(*functions: Callable[..., object]) -> set[str]:
    """The names that functions use, and the functions and classes of the same files that they call."""
    found: set[str] = set()
    todo = [inspect.unwrap(function) for function in functions]
    while todo:
        function = todo.pop()
        new = set(function.__code__.co_names) - found
        found |= new
        for other in (function.__globals__.get(name) for name in new):
            if getattr(other, "__module__", None) == function.__module__:
                called = vars(other).values() if inspect.isclass(other) else [other]
                todo += filter(inspect.isfunction, called)
    return found


@pytest.fixture(scope="session")
def group(request: pytest.FixtureRequest) -> Callable[[int], Group]:
    """`group(2)` is a group of two processes."""
    backend = request.config.getoption("--backend")

    def make(size: int) -> Group:
        if backend == "nccl":
            import torch

            if size > torch.cuda.device_count():
                pytest.skip(f"{size} ranks need as many GPUs, and here are {torch.cuda.device_count()}")
        return Group(size, backend)

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data, where there is one."""
    folder = Path(os.environ.get("FORETRAIN_SHARED", Path(__file__).parent.parent.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"the reference data is not here: {folder}")
    return folder
