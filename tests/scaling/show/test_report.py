"""Reports: one page that needs nothing else, and pictures that are not empty."""

import re

import numpy as np
import pandas as pd
import pytest

from scaling.fit.fitting import fit
from scaling.fit.simulate import study
from scaling.laws import LAWS
from scaling.laws.base.columns import from_size_and_tokens
from scaling.show.pictures import pictures
from tests.support.scaling import scaling, simulated, written


@pytest.fixture(autouse=True)
def _coarse_pictures(monkeypatch):
    monkeypatch.setattr("scaling.show.report.DOTS_PER_INCH", 50)


@pytest.mark.parametrize("name", ["chinchilla", "over-training", "downstream", "isoflop", "qat-fraction", "learning-rate"])
def test_every_law_has_its_page_and_pictures(tmp_path, name):
    from matplotlib import image

    frame = simulated(name)
    holdout = [
        "--holdout",
        f"{'flops' if 'flops' in frame else 'loss' if name == 'downstream' else 'tokens'} > {frame.iloc[:, 0].quantile(0.9)}",
    ]
    words = [] if name in ("isoflop", "qat-fraction", "learning-rate") else holdout
    if name in ("chinchilla", "over-training"):
        words = ["--holdout", f"flops > {frame['flops'].quantile(0.9)}"]
    assert scaling("fit", name, written(tmp_path, frame), *words, "--out", tmp_path / "fit", "--bootstrap", 50).code == 0
    answer = scaling("report", tmp_path / "fit", "--out", tmp_path / "page" / "r.html")
    assert answer.code == 0, answer.err
    page = (tmp_path / "page" / "r.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    pictures = sorted((tmp_path / "page").glob("*.png"))
    assert len(pictures) == 4 if words else 3
    assert page.count("<img") == len(pictures)
    for picture in pictures:
        pixels = image.imread(picture)[..., :3]
        assert 0.002 < np.mean(pixels.mean(axis=-1) < 0.9) < 0.6  # ink
        assert np.allclose(pixels[..., 0], pixels[..., 1], atol=0.02)  # greys only


def legend(figure):
    return [text for axes in figure.axes for text in axes.get_legend_handles_labels()[1]]


def test_every_ratio_has_a_line_and_every_band_a_name():
    frame = simulated("over-training")
    held = np.isclose(frame["tokens_per_parameter"], frame["tokens_per_parameter"].max())
    fitted = fit(LAWS["over-training"], frame, held_out=pd.Series(held), bootstrap=50)
    _, _, figure = pictures(fitted)[0]
    ratios = [f"{ratio:.3g}" for ratio in sorted(frame["tokens_per_parameter"].round(6).unique())]
    assert legend(figure) == [*ratios, "held out"]
    assert len([line for line in figure.axes[0].lines if line.get_marker() == "None"]) == len(ratios)
    assert "nats per token" in figure.axes[0].get_ylabel()
    for name in ("isoflop", "learning-rate"):
        assert "95 % interval" in legend(pictures(fit(LAWS[name], simulated(name), bootstrap=50))[0][2])


def test_several_fits_make_one_page_and_a_place_that_cannot_be_written_is_refused(tmp_path):
    for name in ("isoflop", "learning-rate"):
        scaling("fit", name, written(tmp_path, simulated(name)), "--out", tmp_path / name, "--bootstrap", 40)
    assert scaling("report", tmp_path / "isoflop", tmp_path / "learning-rate", "--out", tmp_path / "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert page.count("<h2>") == 2
    (tmp_path / "file").write_text("")
    scaling("report", tmp_path / "isoflop", "--out", tmp_path / "file" / "r.html").assert_refused("--out")


def test_checkpoints_are_drawn_along_tokens_and_named_once():
    """Twelve runs of ten points, dense in compute: no iso-FLOP study. A line of the legend is a curve with its marker."""
    size, tokens = np.repeat(np.geomspace(5e7, 1e9, 12), 10), np.tile(np.arange(1, 11) * 1e10, 12)
    frame = study(
        LAWS["chinchilla"], LAWS["chinchilla"].truth, from_size_and_tokens(size, tokens), 0.001, np.random.default_rng(0)
    )
    frame["name"] = np.repeat([f"run {number}" for number in range(12)], 10)
    frame.loc[:5, "loss"] *= 1.1
    fitted = fit(LAWS["chinchilla"], frame, bootstrap=40)
    assert any("lie more than 5" in text and "run 0 (6 points)" in text for text in fitted.warnings), fitted.warnings
    (_, caption, figure), (_, _, residuals), *_ = pictures(fitted)
    assert "a line for every size" in caption
    handles, labels = figure.axes[0].get_legend_handles_labels()
    assert len(labels) == len({(line.get_linestyle(), line.get_marker()) for line in handles}) == 6
    assert all(line.get_linestyle() != "None" for line in handles)
    named = [text.get_text() for text in residuals.axes[1].texts]
    assert len(named) == len(set(named)) == 3
