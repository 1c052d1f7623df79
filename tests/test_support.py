"""Tests share what is in tests/support, and take nothing from each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_test_module_imports_another():
    found = {str(path.relative_to(TESTS)): list(imported(path)) for path in TESTS.rglob("*.py")}
    assert len(found) > 50
    wrong = {
        (path, name)
        for path, names in found.items()
        for name in names
        if name.split(".")[0] == "tests" and not f"{name}.".startswith("tests.support.")
    }
    assert not wrong


def test_support_holds_no_tests():
    for path in (TESTS / "support").rglob("*.py"):
        assert not path.name.startswith("test_")
        assert "def test_" not in path.read_text()
