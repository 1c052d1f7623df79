"""Output on a full disk (/dev/full: every write fails with ENOSPC)."""

import os
import subprocess
import sys

import pytest

from common.words import speed

ENDING = "import sys; {0}; from parallel.environment import leave; print('said'); print('more', file=sys.stderr); leave(0)"
LOSSY = "from common.output import go_on_without_output as go_on; go_on()"


@pytest.mark.parametrize(("first", "code", "said"), [("pass", 1, "cannot be written"), (LOSSY, 0, "more")])
def test_an_answer_that_is_lost_is_a_failure_and_what_a_run_says_is_not(first, code, said):
    words = [sys.executable, "-c", ENDING.format(first)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        ended = subprocess.run(words, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_output_and_log_go_on_where_a_disk_is_full():
    code = (
        f"{LOSSY}; import logging; logging.warning('w'); print('x' * 99999); from parallel.environment import leave; leave(0)"
    )
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full, check=False).returncode == 0


def test_speeds():
    assert speed(1.234e9, 0.5) == "2.47 GB/s"
    assert speed(732_274, 0.1) == "7.32 MB/s"
