"""Who may import whom, and what lies in configs/."""

from pathlib import Path

import yaml
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from benchmarks.house import HOUSES, too_long

ROOT = Path(__file__).parent.parent


def test_imports_go_down_never_sideways_never_up(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_configs_are_yaml_alone():
    files = [path for path in (ROOT / "configs").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) > 5
    for path in files:
        if path.relative_to(ROOT / "configs") == Path("__init__.py"):
            assert path.read_text() == ""
            continue
        assert path.suffix == ".yaml", path
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_no_file_and_no_function_wants_another_room():
    assert list(too_long(ROOT, HOUSES)) == []
