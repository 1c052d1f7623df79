"""Text for messages: ranges, values in Hydra's syntax, the nearest valid name, the time."""

import difflib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

_UNQUOTED = re.compile(r"[A-Za-z_/][\w/.*+:%@-]*", re.ASCII)  # text that Hydra reads without quotes


def hydra_word(value: Any) -> str:
    """A value in Hydra's grammar, quoted where it must be: None is null, "a b" is 'a b'."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(hydra_word(item) for item in value)}]"
    text = str(value)
    if isinstance(value, str) and (not _UNQUOTED.fullmatch(text) or text.lower() in ("null", "true", "false", "inf", "nan")):
        # Backslashes escape only before a quote, including the closing quote.
        return "'" + re.sub(r"(\\*)('|\Z)", lambda match: 2 * match[1] + match[2].replace("'", "\\'"), text) + "'"
    return text


def speed(size: float, seconds: float) -> str:
    """Bytes a second, as '1.23 GB/s' or '45.6 MB/s'."""
    rate = size / max(seconds, 1e-9)
    return f"{rate / 1e9:.2f} GB/s" if rate >= 1e8 else f"{rate / 1e6:.3g} MB/s"


def ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] as '0-2, 5'."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def nearest(word: str, names: Sequence[str], cutoff: float = 0.6) -> str | None:
    """The name most like `word`; None if none is at least `cutoff` alike (0: not at all alike, 1: equal)."""
    return next(iter(difflib.get_close_matches(word, names, n=1, cutoff=cutoff)), None)


def timestamp() -> str:
    """The current time as records store it: ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
