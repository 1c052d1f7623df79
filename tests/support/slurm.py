"""A real SLURM on this machine: a controller and two nodes, all of them daemons of this host."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmctldPort=26817
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ReturnToService=2
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[27001-27002] CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")


def missing() -> str | None:
    """Why there can be no SLURM here; None if there can."""
    if os.geteuid() != 0:
        return "SLURM's daemons are started as root, which this is not"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"{', '.join(absent)}: not installed (apt-get install slurm-wlm munge)" if absent else None


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """Within, the commands of SLURM in this process and its children mean this cluster."""
    (folder / "state").mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(_CONF.format(host=host, folder=folder))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        _start_munge()
        for command in (["slurmctld"], ["slurmd", "-N", "n1"], ["slurmd", "-N", "n2"]):
            subprocess.run(command, check=True, capture_output=True)
        _wait_for_nodes()
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], check=False, capture_output=True)
        for path in folder.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGTERM)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _start_munge() -> None:
    if subprocess.run(["munge", "-n"], check=False, capture_output=True).returncode:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "munged"], check=True, capture_output=True)


def _wait_for_nodes() -> None:
    deadline = time.monotonic() + 60
    while said("sinfo", "--noheader", "--format=%T").split() != ["idle"]:
        assert time.monotonic() < deadline, said("sinfo")
        time.sleep(0.3)


def said(*words: str) -> str:
    """What a command of SLURM's says."""
    return subprocess.run(words, check=False, capture_output=True, text=True).stdout


def state_of(job: str) -> str:
    """The state of a job: PENDING, RUNNING, COMPLETED, ..."""
    fields = dict(word.partition("=")[::2] for word in said("scontrol", "show", "job", job, "--oneliner").split())
    return fields.get("JobState", "gone")
