"""A slowed link, a full disk and a version that differs are found, on nodes that are network namespaces of this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.ours import ROOT
from launch.preflight.judge import judge

SLOW = "10mbit"


def sh(*words: str, check: bool = True) -> str:
    return subprocess.run(words, check=check, capture_output=True, text=True).stdout


@pytest.fixture
def nodes():
    """Three namespaces on one bridge; the last one's link is slow in both directions."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("network namespaces need root, ip and tc")
    made = [f"ftp{number}" for number in range(3)]
    try:
        sh("ip", "link", "add", "ftpbr", "type", "bridge")
        sh("ip", "link", "set", "ftpbr", "up")
        for number, name in enumerate(made):
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", f"ftpv{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            sh("ip", "link", "set", f"ftpv{number}", "master", "ftpbr", "up")
            sh("ip", "-n", name, "addr", "add", f"10.83.0.{number + 1}/24", "dev", "eth0")
            sh("ip", "-n", name, "link", "set", "eth0", "up")
            sh("ip", "-n", name, "link", "set", "lo", "up")
        shape = ("root", "tbf", "rate", SLOW, "burst", "64kb", "latency", "200ms")
        sh("tc", "qdisc", "add", "dev", "ftpv2", *shape)
        sh("tc", "-n", "ftp2", "qdisc", "add", "dev", "eth0", *shape)
    except subprocess.CalledProcessError as error:
        _remove(made)
        pytest.skip(f"this machine makes no network namespaces: {error.stderr.strip()}")
    yield made
    _remove(made)


def _remove(made: list[str]) -> None:
    for name in made:
        sh("ip", "netns", "del", name, check=False)
    sh("ip", "link", "del", "ftpbr", check=False)


@pytest.fixture
def full_disk(tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_it_names_the_node_with_the_slow_link_the_full_disk_and_the_odd_version(nodes, full_disk, tmp_path):
    odd = tmp_path / "odd"
    (odd / "tokenizers-0.0.1.dist-info").mkdir(parents=True)
    (odd / "tokenizers-0.0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenizers\nVersion: 0.0.1\n")
    worker = str(ROOT / "launch" / "worker.py")
    processes = []
    for rank, name in enumerate(nodes):
        place = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 29777}
        variables = {key: str(value) for key, value in place.items()} | {
            "MASTER_ADDR": "10.83.0.1",
            "SLURMD_NODENAME": f"n{rank}",
        }
        variables |= {"GLOO_SOCKET_IFNAME": "eth0"} | ({"PYTHONPATH": str(odd)} if rank == 0 else {})
        run_dir = full_disk if rank == 1 else tmp_path / "runs"
        words = ["launch.preflight.worker", str(run_dir), "0.001", "0", "json"]
        command = ["ip", "netns", "exec", name, sys.executable, "-P", worker, *words]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
    answers = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [1, 1, 1], answers
    said = json.loads(answers[0][0])
    problems = "\n".join(said["problems"])
    assert "n2: its links to all others are slow" in problems
    assert f"n1: runs cannot be written: {full_disk}: No space left on device" in problems
    assert "n0: tokenizers is 0.0.1" in problems
    fast, slow = said["processes"][0]["pairs"]["1"], said["processes"][0]["pairs"]["2"]
    assert slow < 2e6 < fast, "10 Mbit/s are 1.25 MB/s"
    assert all(abs(report["clock_seconds"]) < 0.5 for report in said["processes"])
    assert not list(Path(tmp_path / "runs").iterdir()), "nothing is left behind"


def report(node: int, **changes) -> dict:
    plain = {
        "node": node, "host": f"n{node}", "rank": node, "device": "NVIDIA H100", "busy": 0.0, "memory_bytes": 2**36,
        "disk_bytes": 2**40, "write_bytes_per_second": 1e9, "disk_error": None, "flops_per_second": 6e14,
        "clock_seconds": 0.0, "versions": {"torch": "2.13.0"}, "pairs": {other: 4e10 for other in range(4) if other != node},
        "all_reduce_bytes_per_second": 1e11,
    }  # fmt: skip
    return plain | changes


@pytest.mark.parametrize("changes, said", [
    ({}, []),
    ({"device": "cpu"}, ["n2, rank 2: its device is cpu, the others' is NVIDIA H100"]),
    ({"busy": 0.4}, ["n2, rank 2: it is not idle: 40 %"]),
    ({"flops_per_second": 3e14}, ["n2, rank 2: its matrix products run at 3e+14 FLOP/s, 50 % of the usual"]),
    ({"clock_seconds": -2.0}, ["n2, rank 2: its clock is -2.00 s off"]),
    ({"disk_bytes": 2**29}, ["n2: 0.50 GiB are left for runs, less than 1.00"]),
    ({"write_bytes_per_second": 1e8}, ["n2, rank 2: it writes at 1e+08 B/s"]),
    ({"versions": {"torch": "2.12.0"}}, ["n2: torch is 2.12.0, the others have 2.13.0"]),
    ({"pairs": {0: 4e10, 1: 4e10, 3: 1e10}}, ["n2 and n3: the link between them"]),
])  # fmt: skip
def test_what_is_odd_is_named(changes, said):
    reports = [report(0), report(1), report(3), report(2, **changes)]
    if "pairs" in changes:
        reports[2]["pairs"][2] = 1e10
    found = judge(reports, least_disk_bytes=2**30)
    assert len(found) == len(said)
    for line, words in zip(found, said, strict=True):
        assert line.startswith(words)
