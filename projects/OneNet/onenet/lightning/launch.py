"""Processes that work together, started here or by ``torchrun``; when one fails, all end."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy
from torch.multiprocessing import (
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)
from tqdm import tqdm

from onenet.config.device import choose_device, device_of
from onenet.config.rules import check_norms, check_shares
from onenet.errors import ConfigError
from onenet.training.launchers import become, is_one_of_several, of_torchrun
from onenet.training.setup import check_gpus, check_meeting_place
from onenet.training.signals import SIGNALS, hand_on

# Statuses of a process that has said why it ends.
_EXPLAINED = (1, 2, *(128 + number for number in SIGNALS))


def check_processes(cfg: Any, args: argparse.Namespace) -> None:
    """Refuse numbers of processes that cannot work.

    Raises:
        ConfigError: more GPUs than there are, what MPS lacks, or what :func:`check_shares` or
            :func:`check_norms` finds.
    """
    devices, nodes = _devices_and_nodes(args)
    device = device_of(cfg).type
    if device == "cuda":
        check_gpus(devices)
    if device == "mps" and devices * nodes > 1:
        raise ConfigError(
            f"--num-gpus {devices}: MODEL.DEVICE mps is one GPU; several processes run with "
            "MODEL.DEVICE cpu"
        )
    if device == "mps" and cfg.SOLVER.AMP.ENABLED and not args.eval_only:
        raise ConfigError(
            "SOLVER.AMP.ENABLED is True; expected False, as MODEL.DEVICE mps trains in float32"
        )
    if not args.eval_only:
        check_shares(cfg, devices * nodes)
        check_norms(cfg, devices * nodes, device)


def _devices_and_nodes(args: argparse.Namespace) -> tuple[int, int]:
    """Processes on each machine, and machines."""
    if not of_torchrun():
        return args.num_gpus, args.num_machines
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    return devices, int(os.environ["WORLD_SIZE"]) // devices


def must_start(args: argparse.Namespace) -> bool:
    """Whether the processes that flags ask for are still to be started."""
    return args.num_gpus * args.num_machines > 1 and not is_one_of_several()


def start(args: argparse.Namespace, run: Callable[..., Any], *words: Any) -> None:
    """Call ``run(args, *words)`` in ``--num-gpus`` processes, and wait for them.

    When one of them fails, the others get SIGTERM and, 30 s later, SIGKILL. If this process is
    killed, they stop as after SIGTERM.

    Raises:
        SystemExit: the status of the process that failed first, or 128 + the number of the signal
            that killed it; stderr has its traceback.
    """
    _set_rendezvous(args)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        with hand_on():
            start_processes(_work, (run, args, *words), nprocs=args.num_gpus)
    except ProcessRaisedException as error:
        print(error.msg.strip(), file=sys.stderr, flush=True)
        raise SystemExit(1) from error
    except ProcessExitedException as error:
        _exit_like(error)


def _work(local_rank: int, run: Callable[..., Any], *words: Any) -> None:
    become(local_rank)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    # tqdm's own lock outlives a killed process, and Python warns of it.
    tqdm.set_lock(threading.RLock())
    run(*words)


def _stop_with_parent() -> None:
    multiprocessing.parent_process().join()
    # torch has SIGINT sent, which jobs in the background ignore. If it came after SIGTERM, others
    # would stop at once and not save.
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _exit_like(error: ProcessExitedException) -> NoReturn:
    status, how = error.exit_code, f"ended with status {error.exit_code}"
    if status < 0:
        status, how = 128 - status, f"was ended by {error.signal_name}"
        if status == 128 + getattr(signal, "SIGKILL", math.inf):  # Windows has none
            how += ", which also happens when memory runs out"
    if status not in _EXPLAINED:
        line = f"error: the process of local rank {error.error_index} {how}"
        print(line, file=sys.stderr, flush=True)
    raise SystemExit(status) from error


def join(cfg: Any, args: argparse.Namespace) -> Fabric:
    """Join the group of processes, which may be this one alone.

    Raises:
        ConfigError: the port to meet at is taken.
    """
    devices, nodes = _devices_and_nodes(args)
    several = devices * nodes > 1
    device = choose_device(cfg)
    if several:
        faulthandler.enable()  # a traceback when native code crashes, too
    if device.type == "cpu" and several:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    which: Any = devices
    torchrun = of_torchrun()
    if torchrun and nodes == 1 and _restarts() and _agent_has_the_store():
        _meet_again(device)
    if device.type == "cuda" and devices == 1 and device.index is not None and not torchrun:
        which = [device.index]
    fabric = Fabric(
        accelerator=device.type,
        devices=which,
        num_nodes=nodes,
        # Batch norms keep their own statistics on each process, as under Detectron2.
        strategy=DDPStrategy(broadcast_buffers=False) if several or torchrun else "auto",
        precision="bf16-mixed" if cfg.SOLVER.AMP.ENABLED else "32-true",
        # Otherwise Fabric would wait for SLURM to start processes.
        plugins=None if torchrun else [LightningEnvironment()],
    )
    try:
        fabric.launch()
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ConfigError(
            f"port {os.environ['MASTER_PORT']}, at which the processes are to meet, is taken on "
            "this machine, perhaps by another run: give another one (--dist-url tcp://HOST:PORT, "
            "or torchrun's --master-port)"
        ) from error
    return fabric


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def _agent_has_the_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _meet_again(device: torch.device) -> None:
    """Join a group that ``torchrun`` has restarted, before Lightning does.

    ``torchrun --standalone`` keeps one store for all restarts. Without a prefix, processes would
    find the addresses of those that have ended (pytorch/pytorch#135712).
    """
    env = os.environ
    store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"restart {_restarts()}", store),
        rank=int(env["RANK"]),
        world_size=int(env["WORLD_SIZE"]),
        timeout=timedelta(minutes=30),  # Lightning's: others wait while the first one evaluates
    )


def started_again(fabric: Fabric) -> bool:
    """Whether ``torchrun --max-restarts`` has restarted the group after a failure."""
    # Every machine counts only its own failures.
    return bool(fabric.all_reduce(torch.tensor(_restarts()), reduce_op="max"))


def leave(status: int) -> None:
    """End this process at once if it is one of several, so that the others end soon.

    A regular exit closes what they share, which takes seconds and may wait for processes that have
    ended.
    """
    if is_one_of_several():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_lost_process(error: Exception) -> bool:
    """Whether an error of a collective operation says that another process has ended."""
    # gloo's own are RuntimeErrors that name its source file.
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))


def launch_name() -> str:
    """What the restarts of a group by ``torchrun`` have in common; empty without ``torchrun``.

    On several machines, the first process may move to another one; then ``--rdzv-id`` has to tell
    one start from another.
    """
    if not of_torchrun():
        return ""
    env = os.environ
    name = env["TORCHELASTIC_RUN_ID"]
    if name == "none" or env["LOCAL_WORLD_SIZE"] == env["WORLD_SIZE"]:
        name += f" {socket.gethostname()} {os.getppid()}"
    return name


def _set_rendezvous(args: argparse.Namespace) -> None:
    """Tell Lightning where the processes meet."""
    if not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(
            f"--machine-rank must be from 0 to {args.num_machines - 1}, as --num-machines is "
            f"{args.num_machines}, got {args.machine_rank}"
        )
    check_meeting_place(args)
    if args.dist_url == "auto":
        host, port = "127.0.0.1", str(_free_port())
    else:
        scheme, _, address = args.dist_url.partition("://")
        host, _, port = address.rpartition(":")
        if scheme != "tcp" or not host or not port.isdigit():
            raise ConfigError(f"--dist-url must be auto or tcp://HOST:PORT, got {args.dist_url}")
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=port, NODE_RANK=str(args.machine_rank))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
