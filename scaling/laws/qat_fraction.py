"""How much of a run should be quantization-aware, directly. B is the width of a weight in bits."""

from typing import Any

import numpy as np

from scaling.laws.base.columns import Columns
from scaling.laws.base.law import QUANTIZATION, Law, Parameter
from scaling.laws.base.picture import Fitted, Line, Panel, Picture, Points, band, groups
from scaling.laws.qat import PAPER_A, tokens_per_byte


def qat_fraction(tokens: Any, parameters: Any, bits: Any, *, a: Any) -> Any:  # noqa: D103
    log_ratio = np.log(tokens_per_byte(tokens, parameters, bits))
    inverse = 1.0 / np.maximum(log_ratio, 1e-6)  # below S = 1 the exponential vanishes
    return np.exp(-a * inverse)


def _no_saturation(columns: Columns) -> list[str]:
    few = np.mean(tokens_per_byte(columns["tokens"], columns["parameters"], columns["bits"]) <= 1.0)
    return [f"{100 * few:.0f} % of the optima have S <= 1, where the law says 0 whatever a is"] if few else []


def _optima() -> Columns:
    sizes, widths, tokens = (
        np.array([86e6, 396e6, 759e6, 2.2e9]),
        np.array([1.0, 2.0, 4.0, 6.0]),
        np.geomspace(2.3e9, 1.4e12, 4),
    )
    size, bits, total = (grid.ravel() for grid in np.meshgrid(sizes, widths, tokens))
    return {"tokens": total, "parameters": size, "bits": bits}


def _picture(fit: Fitted) -> Picture:
    columns, a = fit.columns, fit.values()["a"]
    ratio = tokens_per_byte(columns["tokens"], columns["parameters"], columns["bits"])
    reach = np.geomspace(max(1.05, ratio.min() / 2), ratio.max() * 3, 100)
    law = {"tokens": reach * 1e9, "parameters": np.asarray(1e9), "bits": np.asarray(8.0)}
    paper = qat_fraction(reach, 1.0, 8.0, a=PAPER_A)
    points = [
        Points(x=ratio[part], y=fit.target[part], group=index, label=f"{bits:.3g} bits")
        for index, (bits, part) in enumerate(groups(columns["bits"]))
    ]
    return Picture(
        caption="The best QAT fraction against tokens per parameter byte: all widths and sizes on one line.",
        panels=(
            Panel(
                marks=(
                    band(fit, reach, law, f"a = {a:.3f}"),
                    Line(x=reach, y=paper, dashes=3, width=1.5, label=f"a = {PAPER_A} (arXiv 2509.22935)"),
                    *points,
                ),
                xlabel="S: tokens per byte of parameters",
                ylabel="best QAT fraction",
                title="the best fraction depends on S alone",
                log="x",
            ),
        ),
        width=9,
    )


QAT_FRACTION = Law(
    name="qat-fraction",
    formula=qat_fraction,
    text="best qat_fraction = exp(-a / ln S),  S = tokens / (parameters bits / 8);  0 where S <= 1",
    source="arXiv 2509.22935, the direct fit (formula and constant from notes on the paper; natural logarithm by inference)",
    needs="optima at several tokens per parameter byte, S above 1",
    parameters={"a": Parameter(starts=(1.0, 3.0, 7.0, 15.0), log=True)},
    target="qat_fraction",
    objective="least-squares",
    optimum_of="qat_fraction",
    group_by=("tokens", "parameters", "bits"),
    window=5,
    remarks=_no_saturation,
    answers=QUANTIZATION,
    picture=_picture,
    truth={"a": PAPER_A},
    design=_optima,
    beyond={"tokens": np.asarray(1e13), "parameters": np.asarray(8e9), "bits": np.asarray(4.0)},
)
