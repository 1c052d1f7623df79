"""`foretrain launch`: local, slurm, ladder, status, preflight. Everything heavy is imported when a command runs."""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.commands import answer
from common.errors import UserError

if TYPE_CHECKING:
    from launch.local import Place

_COMMANDS = ("local", "slurm", "ladder", "status", "preflight")
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Put runs on machines: here, on SLURM, a whole ladder of them; see how they do; look at the machines first.",
)
_Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="as of foretrain train")]
_Preflight = Annotated[bool, typer.Option("--preflight", help="look at the nodes first, in the same job")]
_Nodes = Annotated[int, typer.Option(min=1, help="how many nodes this is started on")]
_NodeRank = Annotated[int, typer.Option(min=0, envvar="SLURM_NODEID", help="number of this node")]
_Rendezvous = Annotated[str, typer.Option(metavar="HOST:PORT", help="of the first node, where there are several")]


def main(arguments: list[str]) -> int:
    """Run a command. Returns the exit code: 0 done, 1 the work failed, 2 the request is wrong, 75 stopped and saved."""
    return answer(app, arguments, name="foretrain launch", commands=_COMMANDS)


@app.command()
def local(
    overrides: _Overrides = None,
    max_restarts: Annotated[int, typer.Option(min=0, help="start a run that failed again, so often")] = 3,
    run: Annotated[Path | None, typer.Option(metavar="FILE", help="overrides, a JSON list; others come after them")] = None,
    nodes: _Nodes = 1,
    node_rank: _NodeRank = 0,
    rendezvous: _Rendezvous = "",
) -> None:
    """Train here, with as many processes as the layout needs, and start again what fails.

    The exit code is 0 if the run is finished, 75 if it was stopped and has saved: the same command goes on.
    """
    from launch.supervise import read_words, run_local

    words = [*(read_words(run) if run is not None else []), *(overrides or [])]
    raise typer.Exit(run_local(words, max_restarts=max_restarts, place=_place(nodes, node_rank, rendezvous)))


@app.command()
def slurm(
    overrides: _Overrides = None,
    cluster: Annotated[str, typer.Option(help="a file of configs/cluster by name, or the path of your own")] = "gpu",
    partition: Annotated[str | None, typer.Option(help="instead of the cluster's")] = None,
    account: Annotated[str | None, typer.Option(help="instead of the cluster's")] = None,
    time: Annotated[str | None, typer.Option(metavar="[DAYS-]HOURS:MINUTES[:SECONDS]", help="of a job")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="the most that the job may have")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="instead of the cluster's")] = None,
    processes_per_node: Annotated[int | None, typer.Option(min=1, help="instead of the cluster's")] = None,
    cpus_per_node: Annotated[int | None, typer.Option(min=1, help="instead of the cluster's")] = None,
    preflight: _Preflight = False,
    force: Annotated[bool, typer.Option("--force", help="queue what the forecast speaks against")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the script, queue nothing")] = False,
) -> None:
    """Queue a run on SLURM. It saves before its time is over, requeues itself, and goes on."""
    from launch.slurm.cluster import load_cluster
    from launch.slurm.run import run_slurm

    site = load_cluster(
        cluster, partition=partition, account=account, time=time, nodes=nodes, gpus_per_node=gpus_per_node,
        processes_per_node=processes_per_node, cpus_per_node=cpus_per_node,
    )  # fmt: skip
    run_slurm(overrides or [], site, dry_run=dry_run, preflight=preflight, force=force)


@app.command()
def ladder(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a ladder in YAML, or what `scaling plan --json` wrote")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="of every run")] = None,
    processes: Annotated[int, typer.Option(min=0, help="at once; 0: as many as there are devices or cores")] = 0,
    cluster: Annotated[str | None, typer.Option(help="queue it there as SLURM arrays, instead of running it here")] = None,
    jobs_at_once: Annotated[int, typer.Option(min=0, help="of an array; 0: as many as the scheduler likes")] = 0,
    preflight: _Preflight = False,
    hardware: Annotated[str | None, typer.Option(help="for the forecast; what is found here unless given")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="dollars per device and hour")] = None,
    trunks: Annotated[bool, typer.Option(help="train once what several runs have in common")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the table, start nothing")] = False,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")] = False,
) -> None:
    """Show a ladder of runs, then train it: what is finished is left out, what was stopped goes on."""
    from launch.ladder.file import read_ladder
    from launch.ladder.queue import Queue, locked
    from launch.ladder.table import as_json, rows_of, show
    from launch.ladder.trunks import jobs_of
    from launch.machine import places_for_processes
    from launch.slurm.cluster import load_cluster
    from launch.slurm.run import queue_ladder
    from parallel.plan.hardware import load_hardware
    from train.config import local_hardware

    jobs = jobs_of(read_ladder(file, overrides or []), share=trunks)
    processes = processes or places_for_processes()
    site = load_cluster(cluster) if cluster is not None else None
    name = hardware or (site and site.hardware)
    machine = load_hardware(name) if name else local_hardware(processes)
    rows = rows_of(jobs, machine, price)
    if json:
        print(dumps(as_json(rows, machine), indent=2))
    else:
        show(rows, machine)
    if site is not None:
        queue_ladder(jobs, site, most_at_once=jobs_at_once, dry_run=dry_run, preflight=preflight)
        return
    if dry_run:
        return
    too_many = next((job for job in jobs if job.processes > processes), None)
    if too_many is not None:
        raise UserError(f"run {too_many.name} needs {too_many.processes} processes: type --processes {too_many.processes}")
    with locked(jobs):
        code = Queue(jobs, processes).run()
    raise typer.Exit(code)


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="a run, or a folder of runs")] = Path("runs"),
    live: Annotated[bool, typer.Option("--live", help="refresh until nothing runs")] = False,
    web: Annotated[bool, typer.Option("--web", help="serve it as a page on this machine's loopback")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of --web; 0: any")] = 8265,
    stuck_factor: Annotated[float, typer.Option(min=1, help="stuck: no step for so many usual step times")] = 10.0,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")] = False,
) -> None:
    """How every run in a folder does: state, progress, loss, speed, time left. Names runs that are stuck."""
    from launch.status.table import as_json, watch
    from launch.status.view import views

    if web:
        from launch.status.web import serve

        serve(folder, port, stuck_factor)
    elif json:
        print(as_json(views(folder, stuck_factor)))
    else:
        watch(folder, stuck_factor, live=live)


@app.command()
def preflight(
    processes: Annotated[int, typer.Option(min=0, help="on every node; 0: as many as there are devices, or one")] = 0,
    run_dir: Annotated[Path, typer.Option(help="where runs will be written")] = Path("runs"),
    least_disk_gib: Annotated[float, typer.Option(min=0, help="that must be free there")] = 1.0,
    least_gb_per_second: Annotated[float, typer.Option(min=0, help="of every link; 0: as the others")] = 0.0,
    nodes: _Nodes = 1,
    node_rank: _NodeRank = 0,
    rendezvous: _Rendezvous = "",
    json: Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")] = False,
) -> None:
    """Look at the nodes: devices, memory, disk, speed, links, clocks, versions. Names those that are slow or odd."""
    from launch.local import start_workers
    from launch.machine import devices

    here = processes or devices() or 1
    words = [str(run_dir), str(least_disk_gib), str(least_gb_per_second), "json" if json else "table"]
    place = _place(nodes, node_rank, rendezvous)
    raise typer.Exit(start_workers(here * nodes, "launch.preflight.worker", words, place))


def _place(nodes: int, node_rank: int, rendezvous: str) -> "Place":
    from launch.local import ALONE, Place

    if nodes == 1:
        return ALONE
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--nodes {nodes} needs --rendezvous HOST:PORT of the first node, such as node001:29500")
    if node_rank >= nodes:
        raise UserError(f"--node-rank {node_rank}: nodes are numbered 0 to {nodes - 1}")
    return Place(nodes, node_rank, rendezvous)
