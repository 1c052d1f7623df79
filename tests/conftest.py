import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.group import Group

# No test asserts on the clock: a busy machine is no failure.
settings.register_profile("foretrain", deadline=None)
settings.load_profile("foretrain")


@pytest.fixture(scope="session")
def group() -> Callable[[int], Group]:
    """`group(2)` is a group of two processes."""
    return Group


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data, where there is one."""
    folder = Path(os.environ.get("FORETRAIN_SHARED", Path(__file__).parent.parent.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"the reference data is not here: {folder}")
    return folder
