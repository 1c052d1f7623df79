"""The application that commands join, and the types of options that several of them have."""

from pathlib import Path
from typing import Annotated

import typer

from scaling.laws import law_names

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Scaling laws: fit them to runs, see how far to trust them, predict, plan.",
)

Data = Annotated[
    list[Path],
    typer.Argument(help="run directories (or folders of them), .csv, .tsv, .parquet, .jsonl, offline wandb directories"),
]
LawName = Annotated[str, typer.Argument(metavar="LAW", help=f"one of: {', '.join(law_names())}; or one of --law-file")]
Fits = Annotated[list[Path], typer.Argument(metavar="FIT.json...", help="what `scaling fit --out` or `--json` wrote")]
Rename = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NEW=OLD", help="call a column NEW; OLD is a column or an expression: 'tokens=billions*1e9'. May be repeated"
    ),
]
Where = Annotated[
    str | None,
    typer.Option(metavar="EXPR", help="which rows, as in a pandas query: 'tokens_per_parameter == 20 and parameters < 1e9'"),
]
LossColumn = Annotated[
    str | None, typer.Option("--loss", metavar="COLUMN", help="the column that is the loss (nats per token)")
]
Group = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="rows equal in it are points of one run (checkpoints); 'none': every row is a run"),
]
BestPer = Annotated[
    str | None,
    typer.Option(metavar="COLUMNS", help="of rows equal in these only the one of lowest loss: 'parameters,tokens'"),
]
LawFile = Annotated[
    Path | None, typer.Option(metavar="FILE.py", help="a Python file that defines laws of your own (docs/laws.md)")
]
LossFit = Annotated[
    Path | None,
    typer.Option(
        metavar="FIT.json",
        help="for a law that takes the loss: forecasts take the one that this fit predicts, not a measured one",
    ),
]
Objective = Annotated[str | None, typer.Option(metavar="NAME", help="huber-log or least-squares; the law's own unless given")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
Seed = Annotated[int, typer.Option(help="of random starts and draws", min=0)]
