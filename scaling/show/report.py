"""Fits and their pictures, as PNG files and on one self-contained page."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from scaling.fit.result import Fit, parameter_table
from scaling.show.destination import writing
from scaling.show.numbers import number
from scaling.show.pictures import pictures

_TEMPLATES = Environment(
    loader=PackageLoader("scaling.show", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters["number"] = number
DOTS_PER_INCH = 150


def write_report(fits: Sequence[Fit], out: Path) -> list[Path]:
    """Write the page and its pictures; returns what was written.

    Raises:
        UserError: the place cannot be written to.
    """
    import matplotlib

    matplotlib.use("Agg")
    sections: list[dict[str, Any]] = []
    written = []
    with writing(out):
        for index, fit in enumerate(fits):
            shown = []
            for name, caption, figure in pictures(fit):
                path = out.with_name(f"{out.stem}-{index + 1}-{fit.law.name}-{name}.png")
                figure.savefig(path, dpi=DOTS_PER_INCH)
                matplotlib.pyplot.close(figure)
                written.append(path)
                shown.append({"caption": caption, "png": base64.b64encode(path.read_bytes()).decode()})
            held_out = fit.holdout.to_dict("records")
            sections.append({"fit": fit, "parameters": parameter_table(fit), "held_out": held_out, "pictures": shown})
        page = _TEMPLATES.get_template("report.html.j2").render(sections=sections)
        out.write_text(page, encoding="utf-8")
    return [out, *written]
