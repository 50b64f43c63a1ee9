"""A process that reads mutated inputs, led by one tool; :mod:`fuzz.__main__` starts them."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from random import Random

HARD_SECONDS = 60  # on the clock, after which what waits or cannot be interrupted is ended
SAVE_EVERY = 200
OWN_FAULT = 3  # exit status where it is not the input that ended it


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", choices=("hypothesis", "atheris"), required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for what is kept")
    return parser.parse_args(argv)


class Counted:
    """Runs inputs under the guard, and saves the tally from time to time."""

    def __init__(self, args: argparse.Namespace) -> None:
        from .guard import Guard, limit_memory
        from .targets import TARGETS, quieten

        warnings.simplefilter("ignore")
        logging.captureWarnings(True)
        quieten()
        self.target = TARGETS[args.target]
        self.limit = args.runs
        work = args.folder / "work" / f"{args.tool}-{args.target}"
        self.guard = Guard(self.target, work, args.folder / "findings")
        self.file = work / "tally.json"
        limit_memory()

    @property
    def done(self) -> bool:
        return self.guard.tally.runs >= self.limit

    def __call__(self, data: bytes) -> None:
        if self.done:
            return
        faulthandler.dump_traceback_later(HARD_SECONDS, exit=True)
        self.guard.run(data)
        faulthandler.cancel_dump_traceback_later()
        if self.done or self.guard.tally.runs % SAVE_EVERY == 0:
            self.guard.tally.save(self.file)


def with_hypothesis(args: argparse.Namespace) -> None:
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from .strategies import mutated

    counted = Counted(args)
    part = 0
    while not counted.done:
        part += 1

        @seed(args.seed * 1_000_003 + part)
        @settings(
            max_examples=min(2000, args.runs),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(mutated(counted.target))
        def read(data: bytes) -> None:
            counted(data)

        read()


def with_atheris(args: argparse.Namespace) -> None:
    import atheris

    parts = ["onenet", "yaml", "yacs", "safetensors", "check_dataset", "_shared"]
    parts += ["visualize_json_results"]
    with atheris.instrument_imports(include=parts):
        counted = Counted(args)
    import pickle

    import torch._weights_only_unpickler as unpickler

    from .trees import CHANGES

    atheris.instrument_func(unpickler.Unpickler.load)
    atheris.instrument_func(pickle._Unpickler.load)
    corpus = args.folder / "corpus" / args.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(counted.target.seeds()):
        (corpus / f"seed{number}").write_bytes(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.2:
            return atheris.Mutate(data, max_size)
        try:
            for _ in range(rng.choice(CHANGES)):
                data = counted.target.mutate(rng, data)
        except Exception:  # which atheris would take for the input's
            traceback.print_exc()
            os._exit(OWN_FAULT)
        return data[:max_size]

    options = [f"-runs={args.runs}", f"-seed={args.seed + 1}", "-max_len=300000", "-len_control=0"]
    options += ["-timeout=86400", "-rss_limit_mb=0", "-verbosity=0", "-reload=0"]
    options += [f"-artifact_prefix={counted.file.parent}/", str(corpus)]
    atheris.Setup([sys.argv[0], *options], counted, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    arguments = parse(sys.argv[1:])
    try:
        {"hypothesis": with_hypothesis, "atheris": with_atheris}[arguments.tool](arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(OWN_FAULT)
