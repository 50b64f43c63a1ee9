"""Train or evaluate OneNet, or replay a bad batch; see ``--help``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from onenet.cli import choose_engine, one_line, training_parser
from onenet.config.imports import import_files
from onenet.errors import ConfigError, print_any_text


def main(argv: Sequence[str] | None = None) -> None:
    print_any_text()
    args = training_parser().parse_args(argv)
    if args.replay is not None:
        with one_line(args.traceback):
            import_files(args.imports)
            replay = importlib.import_module("onenet.training.replay").replay
            wrong = replay(args.replay, args.opts, choose_engine=choose_engine)
        raise SystemExit(int(wrong))
    try:
        package, why = choose_engine(args.engine)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    importlib.import_module(f"{package}.main").run(args, why)
