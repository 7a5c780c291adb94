"""`vlmc train`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmc.commands.guard import guarded
from vlmc.diagnostics import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from vlmc.partition.plan import ParallelPlan

SCRIPT = Path("parallel") / "train.py"


def train(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN_OR_FOLDER",
            help="plan.yaml, or a build folder that holds one.",
            show_default=False,
        ),
    ],
    build: Annotated[
        Path | None,
        typer.Option(
            help="The build to train (default: the folder of the plan, else generated/<design>).",
            show_default=False,
        ),
    ] = None,
    node_rank: Annotated[
        int, typer.Option(help="Which of the plan's nodes this machine is.", min=0)
    ] = 0,
    master: Annotated[
        str | None,
        typer.Option(help="Where node 0 answers, HOST:PORT; for plans over several nodes."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command and run nothing.")
    ] = False,
) -> None:
    """Train a build as its plan says: torchrun on its parallel/train.py, a process for each device
    of this machine. All other options go on to train.py, such as --data, --steps and --save."""
    with guarded():
        from vlmc.planning.document import NAME, load_plan

        file = path / NAME if path.is_dir() else path
        plan = load_plan(file).plan
        if plan.mode != "train":
            raise UsageError(f"{file} serves: give mode: train in target.workload, and plan again")
        script = _build(file, build, plan) / SCRIPT
        command = [*_launch(plan, node_rank, master), str(script), "--plan", str(file)]
        command += context.args
        typer.echo(shlex.join(command), err=not dry_run)
        if dry_run:
            return
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def _build(file: Path, given: Path | None, plan: ParallelPlan) -> Path:
    """The build that is trained. Raises UsageError where there is none."""
    places = [given] if given else [file.parent, Path("generated") / plan.design]
    for folder in places:
        if (folder / SCRIPT).is_file():
            return folder
    named = " and ".join(str(folder) for folder in places)
    raise UsageError(
        f"there is no {SCRIPT} in {named}: build the design with --seed N or --checkpoint DIR, "
        "and name its folder with --build"
    )


def _launch(plan: ParallelPlan, node_rank: int, master: str | None) -> list[str]:
    """torchrun with as many processes as this machine has of the plan's ranks. Raises UsageError
    where the nodes are not told of each other, EnvironmentFault for too few devices."""
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    local, nodes = min(plan.count, plan.per_node), -(-plan.count // plan.per_node)
    devices = _devices()
    if devices and devices < local:
        raise EnvironmentFault(
            f"the plan is for {local} devices on a machine, this one has {devices}: plan for it "
            f"with --count {devices} or --set target.per_node={devices}"
        )
    if nodes == 1:
        if master or node_rank:
            raise UsageError("--master and --node-rank are for plans over several nodes")
        return [*torchrun, "--standalone", "--nproc-per-node", str(local)]
    if not master:
        raise UsageError(
            f"the plan is for {nodes} nodes of {local} devices: run it on each with "
            "--node-rank N --master HOST:PORT"
        )
    host, colon, port = master.rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise UsageError(f"--master {master}: HOST:PORT is expected, such as node0:29500")
    if node_rank >= nodes:
        raise UsageError(f"--node-rank {node_rank}: the plan's nodes are 0 to {nodes - 1}")
    among = ["--nnodes", str(nodes), "--node-rank", str(node_rank)]
    among += ["--master-addr", host, "--master-port", port]
    return [*torchrun, *among, "--nproc-per-node", str(local)]


def _devices() -> int:
    """CUDA devices of this machine; 0 where processes run on its CPU, however many they are."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
