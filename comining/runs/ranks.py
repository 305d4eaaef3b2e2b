"""The processes of one run, before Lightning connects them: rank 0 decides for all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed.distributed_c10d import Store

from comining.errors import ConfigError

# Seconds that the starts of the nodes may differ by.
WAIT = 300.0
KEY = "comining/run_directory"

Decision = dict[str, Any]

# The store of rank 0 also serves the process group, which is created later at the same address.
_stores: list[Store] = []


@dataclass(frozen=True)
class Meeting:
    """Where the processes of a run meet, if none of them started the others.

    Args:
        rank: of this process among all.
        address: of the machine of rank 0.
        port: there; the one that the process group uses.
        hosted: by the launcher (torchrun), else by rank 0.
    """

    rank: int
    address: str
    port: int
    hosted: bool

    def agree(self, decide: Callable[[], Decision]) -> Decision:
        """The decision of rank 0, in every process.

        Args:
            decide: called in rank 0 only; returns plain containers.

        Raises:
            ConfigError: the processes do not find each other.
        """
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]  # public, but not in __all__

                self.address, self.port, is_master=self.rank == 0 and not self.hosted,
                timeout=timedelta(seconds=WAIT), wait_for_workers=False, multi_tenant=True,
            )  # fmt: skip
            _stores.append(store)
            if self.rank:
                received: Decision = json.loads(store.get(KEY))
                return received
        except (dist.DistError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(
                f"rank {self.rank} found no rank 0 at {self.address}:{self.port} within "
                f"{WAIT:.0f} s: {reason}"
            ) from error
        decision: Decision = {"error": "rank 0 failed before it had a run directory"}
        try:
            decision = decide()
        finally:
            store.set(KEY, json.dumps(decision))
        return decision


def meeting(num_nodes: int) -> Meeting | None:
    """Where this process meets the others of its run.

    Returns:
        None for a process that is alone, that starts the others itself, or that was started by
        one of them.

    Raises:
        ConfigError: there are several nodes, and nothing says which one this is.
    """
    if TorchElasticEnvironment.detect():
        if int(os.environ["WORLD_SIZE"]) == 1:
            return None
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
        return _at(int(os.environ["RANK"]), os.environ, hosted)
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and _in_slurm():
        slurm = SLURMEnvironment()
        return Meeting(slurm.global_rank(), slurm.main_address, slurm.main_port, hosted=False)
    if num_nodes == 1 or started_by_rank_zero():
        return None
    missing = [n for n in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise ConfigError(
            f"trainer.num_nodes={num_nodes}: start the nodes with torchrun or srun, or set "
            f"{', '.join(missing)} on each"
        )
    # The first process of each node; it starts the others.
    return _at(int(os.environ["NODE_RANK"]), os.environ, hosted=False)


def _in_slurm() -> bool:
    try:
        return SLURMEnvironment.detect()
    except RuntimeError as error:  # Lightning refuses the job's options
        raise ConfigError(f"SLURM: {' '.join(str(error).split())}") from error


def _at(rank: int, environment: os._Environ[str], hosted: bool) -> Meeting:
    return Meeting(rank, environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), hosted)


def started_by_rank_zero() -> bool:
    """Whether Lightning's launcher started this process, with rank 0's directory in its options."""
    return "LOCAL_RANK" in os.environ and int(os.environ["LOCAL_RANK"]) > 0


def refuse_several_processes(trainer: L.Trainer) -> None:
    """Refuse a run of a sweep that Lightning would start further processes for.

    It would start them with the command line of the whole sweep. (SLURM has already started one
    process for each device.)

    Raises:
        ConfigError: with what to do instead.
    """
    by_slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if trainer.world_size > 1 and not by_slurm:
        raise ConfigError(
            f"a sweep runs each of its runs on one device, but these options use "
            f"{trainer.num_devices} on {trainer.num_nodes} nodes: set trainer.devices=1. To use "
            "several, start the runs one by one (without -m), give each run its own device with "
            "launcher=joblib, or let SLURM start the processes: launcher=slurm "
            "hydra.launcher.tasks_per_node=DEVICES"
        )
