"""Fits and their pictures, as PNG files and on one self-contained page."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from scaling.arguments import writing
from scaling.fit import Fit
from scaling.fit_file import parameter_table
from scaling.pictures import pictures
from scaling.show import number

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#111;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;border-bottom:1px solid #bbb;text-align:right}
td:first-child,th:first-child{text-align:left}img{width:100%;height:auto}figure{margin:1.5rem 0}figcaption{color:#444}
.warning{border-left:4px solid #111;padding:.1rem .8rem;margin:.5rem 0;background:#eee}code{background:#eee}"""


def write_report(fits: Sequence[Fit], out: Path) -> list[Path]:
    """Write the page and its pictures; returns what was written.

    Raises:
        UserError: the place cannot be written to.
    """
    import matplotlib

    matplotlib.use("Agg")
    sections, written = [], []
    with writing(out):
        for index, fit in enumerate(fits):
            figures = []
            for name, caption, figure in pictures(fit):
                path = out.with_name(f"{out.stem}-{index + 1}-{fit.law.name}-{name}.png")
                figure.savefig(path, dpi=150)
                matplotlib.pyplot.close(figure)
                written.append(path)
                figures.append((path, caption))
            sections.append(_section(fit, figures))
        title = "Scaling laws"
        page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        page += f"<h1>{title}</h1>{''.join(sections)}</html>\n"
        out.write_text(page, encoding="utf-8")
    return [out, *written]


def _section(fit: Fit, figures: list[tuple[Path, str]]) -> str:
    rows = "".join(
        f"<tr><td>{name}</td><td>{number(row['value'])}</td><td>{number(row['low'])}</td><td>{number(row['high'])}</td></tr>"
        for name, row in parameter_table(fit).items()
    )
    table = f"<table><tr><th>parameter</th><th>value</th><th>95 % low</th><th>high</th></tr>{rows}</table>"
    held = "".join(
        f"<tr><td>{html.escape(str(row['name']))}</td><td>{number(row['actual'])}</td><td>{number(row['predicted'])}</td>"
        f"<td>{number(row['low'])} to {number(row['high'])}</td><td>{100 * row['relative_error']:+.2f} %</td></tr>"
        for row in fit.holdout.to_dict("records")
    )
    if held:
        held = f"<table><tr><th>held out</th><th>actual</th><th>predicted</th><th>95 %</th><th>error</th></tr>{held}</table>"
    shown = "".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for path, caption in figures
    )
    said = "".join(f'<p class="warning">{html.escape(text)}</p>' for text in fit.warnings)
    out = "".join(f"<li>{html.escape(row.name)}: {html.escape(row.reason)}</li>" for row in fit.left_out)
    what = "optima" if fit.law.optimum_of else "runs"
    return (
        f"<h2>{fit.law.name}</h2><p><code>{html.escape(fit.law.text)}</code><br>{html.escape(fit.law.source)}</p>"
        f"<p>{len(fit.runs)} {what}; {fit.objective.name} {fit.objective_value:.6g}; "
        f"{fit.starts_reached} of {fit.starts_tried} starts reached this optimum; "
        f"intervals: {fit.draws.method}, {len(fit.draws.theta)} draws.</p>{table}{said}{held}{shown}"
        + (f"<p>Left out:</p><ul>{out}</ul>" if out else "")
    )
