"""What started this process: torchrun, the program itself, or the user, perhaps under Slurm.

Other launchers, shells and debuggers set some of torchrun's variables, too. Whoever takes those for
torchrun's waits for processes that nothing starts.
"""

from __future__ import annotations

import argparse
import logging
import os

logger = logging.getLogger(__name__)
_NUMBERS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_TEXTS = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
# What places a process among others, for Lightning, too.
_PLACES = (*_NUMBERS, "NODE_RANK")
_own = False  # whether this process is one that the program has started


def of_torchrun() -> bool:
    """Whether ``torchrun`` started this process: all of its variables are there."""
    numbers = all(os.environ.get(name, "").isdecimal() for name in _NUMBERS)
    return numbers and all(os.environ.get(name) for name in _TEXTS)


def is_one_of_several() -> bool:
    """Whether this process was started, by torchrun or the program, to work with others."""
    return _own or of_torchrun()


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if is_one_of_several() else 0


def become(rank: int) -> None:
    """Make this process the one of that number among those that the program starts here."""
    global _own
    _own = True
    os.environ["LOCAL_RANK"] = str(rank)


def take_environment(args: argparse.Namespace) -> None:
    """Log what torchrun or Slurm decide, and remove from the environment what neither has set.

    Args:
        args: of :func:`onenet.cli.training_parser`.
    """
    if _own:
        return
    if of_torchrun():
        here, all_ = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        if local_rank() == 0:
            logger.info(
                "torchrun has started %d processes on this machine and %d in all%s",
                here,
                all_,
                "" if args.num_gpus in (1, here) else f"; --num-gpus {args.num_gpus} is not read",
            )
        return
    if foreign := [name for name in _PLACES if name in os.environ]:
        logger.warning(
            "%s in the environment: not used, as torchrun sets %s, too; --num-gpus (%d) says how "
            "many processes run here",
            ", ".join(f"{name}={os.environ.pop(name)}" for name in foreign),
            ", ".join(name for name in (*_TEXTS, *_NUMBERS) if name not in foreign),
            args.num_gpus,
        )
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if tasks.isdecimal() and int(tasks) > args.num_machines:
        logger.warning(
            "srun has started %s tasks, and this is task %s: each of them runs the whole program, "
            "with --num-gpus (%d) processes. For one run on several GPUs, let srun start one task "
            "on each machine (--ntasks-per-node 1), and give --num-gpus",
            tasks,
            os.environ.get("SLURM_PROCID", "?"),
            args.num_gpus,
        )
