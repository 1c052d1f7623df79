"""Do intervals hold on real runs? Laws are fitted to the small runs of public studies and judged on the large ones.

    python -m benchmarks.real_studies FOLDER_OF_TABLES... [--about benchmarks/public_studies] [--law chinchilla ...]

Every YAML file of `--about` is a study; one that lies beside its table needs no `--about`. Its keys:

    data: table.csv            the table, in one of the folders; the YAML's own name with .csv unless given
    splits: {NAME: EXPR, ...}  which rows are held out, as `scaling fit --holdout` takes it
    where, loss, group, best_per, rename      as the options of `scaling fit`; all may be missing

Prints a row for each split: how many held-out runs the nominal 95 % intervals of a new run contain, how many lie below and
above, how wide they are with and without the law's own error (`--roll-out`), and how far off law and naive extrapolation are.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from common.errors import UserError, WorkFailed
from scaling.fit.fitting import fit
from scaling.fit.result import held_out_summary
from scaling.laws import find_law
from scaling.runs.read import read_runs, select

ABOUT = Path(__file__).parent / "public_studies"
_SHARES = ("inside", "below", "above", "noise alone", "half-width", "of noise", "error", "naive")
_KEYS = {"data", "splits", "where", "loss", "group", "best_per", "rename"}


@dataclass(frozen=True)
class Study:
    """A table of runs, and what is asked of it."""

    name: str
    frame: pd.DataFrame
    splits: Mapping[str, str]
    group: str | None
    best_per: Sequence[str]


def studies(folders: Sequence[Path], about: Path) -> Iterator[Study]:
    """Every study whose table lies in one of the folders.

    Raises:
        UserError: a description has an unknown key or no splits.
    """
    descriptions = sorted({path.resolve() for folder in (*folders, about) for path in folder.glob("*.yaml")})
    for path in descriptions:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict) or not plain.get("splits") or set(plain) - _KEYS:
            raise UserError(f"{path}: keys are {', '.join(sorted(_KEYS))}; splits: {{NAME: EXPR}} must be there")
        name = plain.get("data", f"{path.stem}.csv")
        table = next((folder / name for folder in (path.parent, *folders) if (folder / name).is_file()), None)
        if table is None:
            print(f"{path.stem}: no {name} in {', '.join(map(str, folders))}; left out", file=sys.stderr)
            continue
        frame = read_runs([table], plain.get("rename", []), {"loss": plain.get("loss")})
        frame = frame[select(frame, plain.get("where"), "where")].reset_index(drop=True)
        best_per = [word.strip() for word in plain.get("best_per", "").split(",") if word.strip()]
        yield Study(path.stem, frame, plain["splits"], plain.get("group"), best_per)


def judge(study: Study, law: str, split: str, bootstrap: int) -> dict[str, Any] | None:
    """One row of the table; None where the law cannot be fitted."""
    held = select(study.frame, study.splits[split], "splits")
    try:
        fitted = fit(find_law(law), study.frame, held_out=held, group=study.group, best_per=study.best_per, bootstrap=bootstrap)
    except (UserError, WorkFailed) as error:
        print(f"{study.name}, {split}, {law}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    summary, table = held_out_summary(fitted), fitted.holdout
    assert summary is not None
    actual = table["actual"].to_numpy()
    plain = replace(fitted, draws=replace(fitted.draws, drift=None))
    narrow = plain.predict({name: table[name].to_numpy() for name in fitted.law.columns})
    return {
        "study": study.name, "split": split, "fitted": len(fitted.runs), "held out": summary["runs"],
        "inside": summary["inside"] * summary["intervals"] / summary["runs"],
        "below": summary["below"], "above": summary["above"],
        "noise alone": float(np.mean((narrow.low <= actual) & (actual <= narrow.high))),
        "half-width": float(((table["high"] - table["low"]) / 2.0 / table["predicted"]).median()),
        "of noise": float(np.median((narrow.high - narrow.low) / 2.0 / narrow.value)),
        "error": summary["median_error"], "naive": summary["median_naive_error"], "doubted": bool(fitted.doubts),
    }  # fmt: skip


def shown(row: Mapping[str, Any]) -> str:
    """A row as a line; shares in per cent."""
    cells = [f"{row['study']:26} {row['split']:36} {row['fitted']:6} {row['held out']:8}"]
    cells += [f"{100 * row[name]:11.1f}" for name in _SHARES]
    return " ".join([*cells, "doubted" if row["doubted"] else ""])


def totals(rows: pd.DataFrame) -> list[str]:
    """What a law's rows come to."""
    runs = rows["held out"]
    lines = []
    for column in ("noise alone", "inside"):
        lines.append(
            f"  {column:11}: {100 * rows[column].mean():.1f} % as the mean of {len(rows)} splits, "
            f"{100 * np.sum(rows[column] * runs) / runs.sum():.1f} % of {runs.sum()} runs, "
            f"{np.sum(rows[column] < 0.9)} splits under 90 %"
        )
    wide, narrow = rows["half-width"].median(), rows["of noise"].median()
    ratio = (rows["half-width"] / rows["of noise"]).median()
    lines.append(
        f"  median half-width {100 * wide:.2f} % of the loss, of noise alone {100 * narrow:.2f} %; of a split {ratio:.2f} times"
    )
    doubted = rows["doubted"]
    lines.append(
        f"  {doubted.sum()} fits are doubted; median error of those {100 * rows['error'][doubted].median():.2f} %, "
        f"of the others {100 * rows['error'][~doubted].median():.2f} %"
    )
    return lines


def main() -> int:
    """Parse the command line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--about", type=Path, default=ABOUT)
    parser.add_argument("--law", nargs="+", default=["chinchilla", "over-training"])
    parser.add_argument("--bootstrap", type=int, default=400)
    options = parser.parse_args()
    chosen = list(studies(options.folders, options.about))
    for law in options.law:
        heading = f"{'study':26} {'held out':36} {'fitted':>6} {'held out':>8} " + " ".join(f"{name:>11}" for name in _SHARES)
        print(f"{law} (per cent)\n{heading}")
        rows = []
        for study, split in [(one, split) for one in chosen for split in one.splits]:
            row = judge(study, law, split, options.bootstrap)
            if row is not None:
                rows.append(row)
                print(shown(row), flush=True)
        print("\n".join(totals(pd.DataFrame(rows))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
