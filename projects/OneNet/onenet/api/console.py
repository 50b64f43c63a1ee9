"""The command ``onenet``: one word for each program, which starts only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import onenet
from onenet.errors import did_you_mean


class Command(NamedTuple):
    """A program: the module whose ``main(argv)`` it is, words put first, and what it does."""

    module: str
    words: tuple[str, ...]
    does: str


COMMANDS = {
    "train": Command("onenet.api.train", (), "train a detector"),
    "eval": Command("onenet.api.train", ("--eval-only",), "evaluate a checkpoint on a data set"),
    "predict": Command("onenet.api.predict", (), "detect in images, videos or a webcam's pictures"),
    "export": Command("onenet.api.export", (), "write a detector as one file: ONNX, torch.export"),
    "page": Command("onenet.api.page.main", (), "open a page in the browser to try detectors on"),
    "env": Command("onenet.api.environment", (), "print versions, engines and devices"),
}
# What people type for them.
_ALIASES = {"evaluate": "eval", "val": "eval", "detect": "predict", "demo": "predict"}


def usage() -> str:
    rows = "\n".join(f"  {name:9}{command.does}" for name, command in COMMANDS.items())
    return (
        "usage: onenet COMMAND …\n\nOneNet: object detection without NMS.\n\ncommands:\n"
        f"{rows}\n\nonenet COMMAND --help lists the flags of a command.\n"
        "--config-file takes a file, or the name of a config that comes with the package, such as\n"
        "onenet.res50.dcn.yaml."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Raises:
        SystemExit: as the program does; 2 for an unknown command.
    """
    name, *rest = list(sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"onenet {onenet.__version__}")
        return
    if name not in COMMANDS:
        near = f"; did you mean {_ALIASES[name]!r}?" if name in _ALIASES else ""
        near = near or did_you_mean(name, COMMANDS)
        told = f"error: onenet has no command {name}{near}" if name else usage()
        print(told, file=sys.stderr)
        raise SystemExit(2)
    command, program = COMMANDS[name], sys.argv[0]
    sys.argv[0] = f"onenet {name}"  # for the program's --help and its messages
    try:
        importlib.import_module(command.module).main([*command.words, *rest])
    finally:
        sys.argv[0] = program
