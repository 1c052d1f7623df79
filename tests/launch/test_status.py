"""The state of runs is read from their folders: those that are stuck or dead are named; the page is for this machine alone."""

import json
import os
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from launch.commands import main
from launch.status.view import LEAST_SECONDS, curve, view_of
from launch.status.web import page, server
from scaling.record import StepLine, line_text
from train.config import load_config


def run(
    place: Path, name: str, status: str = "running", steps: int = 20, *, process: int | None = None, seconds: float = 2.0
) -> Path:
    """The folder of a run as a trainer leaves it in the middle."""
    folder = place / name
    (folder / "logs").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(load_config(["train.steps=100"]).as_dict()))
    record = {"name": name, "status": status, "tokens": 4096 * steps, "loss": 3.25, "tokens_per_second": 1000.0}
    (folder / "run.json").write_text(json.dumps(record))
    holder = {"host": os.uname().nodename, "process": process or os.getpid(), "since": "now"}
    (folder / ".lock").write_text(json.dumps(holder))
    lines = [
        StepLine(
            step=step, tokens=4096 * step, loss=5.0 - step / 100, learning_rate=1e-3, gradient_norm=1.0, phase="trunk",
            tokens_per_second=2048.0, step_seconds=seconds, memory_bytes=None,
        )
        for step in range(1, steps + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(map(line_text, lines)))
    (folder / "logs" / "rank_0000.log").write_text("2026 going on\n2026 [red]step 20 of 100\x1b[31m\n")
    return folder


def test_progress_speed_and_time_left(tmp_path):
    view = view_of(run(tmp_path, "a"), 10.0)
    assert (view.state, view.step, view.total_tokens, view.progress) == ("running", 20, 409600, 0.2)
    assert view.loss == pytest.approx(4.8)
    assert view.seconds_left == pytest.approx(80 * 4096 / 2048.0)
    assert view.message == "2026 [red]step 20 of 100[31m"


@pytest.mark.parametrize("quiet, seconds, state", [
    (LEAST_SECONDS - 5, 0.1, "running"),
    (LEAST_SECONDS + 5, 0.1, "stuck"),
    (290.0, 30.0, "running"),
    (310.0, 30.0, "stuck"),
])  # fmt: skip
def test_stuck_is_no_step_for_k_usual_step_times(tmp_path, quiet, seconds, state):
    folder = run(tmp_path, "a", seconds=seconds)
    assert view_of(folder, 10.0, now=(folder / "metrics.jsonl").stat().st_mtime + quiet).state == state


def test_dead_is_a_run_whose_process_is_gone_and_an_ended_one_is_neither(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert view_of(run(tmp_path, "dead", process=gone.pid), 10.0).state == "dead"
    later = time.time() + 1e6
    for status in ("finished", "preempted", "failed"):
        view = view_of(run(tmp_path, status, status, process=gone.pid), 10.0, now=later)
        assert (view.state, view.seconds_left) == (status, None)
    assert view_of(tmp_path / "finished", 10.0).loss == 3.25


def test_the_table_and_the_json_have_every_run_and_damage_hides_none(tmp_path, capsys):
    run(tmp_path, "a")
    run(tmp_path / ".trunks", "b", "finished")
    broken = run(tmp_path, "c")
    (broken / "run.json").write_text("{")
    (broken / "metrics.jsonl").write_text('{"loss": \n')
    assert main(["status", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in said["runs"]] == ["b", "a", "c"]
    assert said["states"] == {"finished": 1, "running": 1, "unreadable": 1}
    assert said["runs"][0].keys() == asdict(view_of(tmp_path / "a", 10.0)).keys() | {"progress"}
    assert main(["status", str(tmp_path)]) == 0
    assert "1 finished, 1 running, 1 unreadable" in capsys.readouterr().out


@pytest.mark.parametrize("place, said", [("none", "no such folder"), ("", "no runs in it")])
def test_no_runs(tmp_path, place, said, capsys):
    assert main(["status", str(tmp_path / place)]) == 2
    assert said in capsys.readouterr().err


def test_a_curve_is_thinned_to_means(tmp_path):
    points = list(curve(run(tmp_path, "a", steps=100), most=10))
    assert len(points) == 10
    assert points[0] == (40960, pytest.approx(5.0 - 0.055))


def test_the_page_is_served_to_this_machine_alone_and_escapes_what_runs_say(tmp_path):
    folder = run(tmp_path, "a")
    (folder / "logs" / "rank_0000.log").write_text("<script>alert(1)</script>\n")
    serving = server(tmp_path, 0, 10.0)
    assert serving.server_address[0] == "127.0.0.1"
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{serving.server_port}"
    try:
        text = urllib.request.urlopen(f"{address}/").read().decode()
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)" in text
        assert re.search(r"<svg.*</svg>", text, re.DOTALL)
        assert json.loads(urllib.request.urlopen(f"{address}/status.json").read())["states"] == {"running": 1}
        for path, host, code in (("/", "evil.example", 403), ("/../a/run.json", None, 404)):
            request = urllib.request.Request(address + path, headers={"Host": host} if host else {})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request)
            assert refused.value.code == code
        with pytest.raises(UserError, match="--port"):
            server(tmp_path, serving.server_port, 10.0)
    finally:
        serving.shutdown()
        serving.server_close()


def test_a_run_without_a_step_has_no_curve(tmp_path):
    folder = run(tmp_path, "a")
    (folder / "metrics.jsonl").write_text("")
    assert "<svg" not in page(tmp_path, 10.0)
