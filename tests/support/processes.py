"""What runs on this machine."""

import re
from pathlib import Path


def workers_of(pid: int) -> list[int]:
    """The processes that a launcher started to train."""
    text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [child for child in map(int, text.split()) if b"train" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no mere zombie."""
    try:
        return re.search(r"State:\s+[ZX]", Path(f"/proc/{pid}/status").read_text()) is None
    except (FileNotFoundError, ProcessLookupError):
        return False
