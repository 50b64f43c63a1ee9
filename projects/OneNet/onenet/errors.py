"""Every error class of the package, and how an error reaches the user; imports no torch.

Programs catch :class:`OneNetError` and print its message in one line.
"""

from __future__ import annotations

import difflib
import io
import os
import pickle
import sys
import traceback
from collections.abc import Iterable
from typing import Any, NoReturn


class OneNetError(Exception):
    """Base class of errors the user can fix; the message says what is wrong and what to do.

    Attributes:
        exit_status: of a program that the error ends.
    """

    exit_status = 2


class ConfigError(OneNetError, ValueError):
    """A config that cannot be used; the message names the file or key and what it expects."""


class DatasetError(OneNetError, ValueError):
    """The user's data is wrong; the message says what and where, and what to do."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error again, with the worker's traceback as its message;
        # the sentence that the user needs comes last.
        name = type(self).__name__
        if message.startswith(f"Caught {name} in DataLoader worker"):
            message = message.rpartition(f"{name}: ")[2].rstrip("\n")
        super().__init__(message)


class UnreadableImageError(DatasetError):
    """An image that is missing, cannot be decoded, or differs in size from its JSON."""


class CheckpointError(OneNetError, ValueError):
    """A weights file that is missing, unsafe, broken, or of another model."""


class UnsafePickleError(pickle.UnpicklingError):
    """A pickle that asks for something other than arrays of numbers and containers."""


class ExportError(OneNetError, ValueError):
    """A model that cannot be exported, or an exported graph that fails its checks."""


class ExportedModelError(OneNetError, ValueError):
    """A file that is not an exported OneNet, or that cannot run here."""


class NonFiniteError(OneNetError, FloatingPointError):
    """A cost or loss is NaN or infinite; the message names the term and the image."""

    exit_status = 1


class OutOfMemoryError(OneNetError, MemoryError):
    """The device or the machine has too little memory; the message names what needs less."""

    exit_status = 1


class LostProcessError(OneNetError):
    """Another process has ended, and the work needs all of them."""

    exit_status = 1


class DataWorkerError(OneNetError):
    """A data worker has ended, or cannot pass on what it has read."""

    exit_status = 1


class WriteError(OneNetError):
    """A file could not be written; what its name held before is unchanged."""

    exit_status = 1


def look_up(registry: Iterable[tuple[str, Any]], key: str, name: str) -> Any:
    """The entry of a registry that a config key names.

    Args:
        registry: fvcore's ``Registry``, or other pairs of a name and its entry.
        key: the config key, for the message.
        name: the key's value.

    Raises:
        ConfigError: no entry has that name; gives the key, the value, the choices and the nearest.
    """
    entries = dict(registry)
    if name not in entries:
        raise ConfigError(
            f"{key} must be one of {', '.join(entries)}, got {name!r}{did_you_mean(name, entries)}"
        )
    return entries[name]


def did_you_mean(name: object, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with the choice that is most like a name, or nothing if none is."""
    folded = {choice.casefold(): choice for choice in choices}
    near = difflib.get_close_matches(str(name).casefold(), folded, n=1)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def end_with(error: Exception, show_traceback: bool, message: str | None = None) -> NoReturn:
    """Print ``message``, or else the error's own, as one line and exit as :func:`one_line` does."""
    if show_traceback:
        traceback.print_exception(error)
    print(f"error: {message or error}", file=sys.stderr, flush=True)
    raise SystemExit(getattr(error, "exit_status", 2)) from error


def print_any_text() -> None:
    """Let stdout take characters that its encoding lacks, as escapes (``\\u5706``).

    Class and file names come in every alphabet; a terminal with ``LANG=C`` or a Windows code page
    must not end a program because of one.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # not a notebook's
        sys.stdout.reconfigure(errors="backslashreplace")


def drop_stream(number: int) -> None:
    """Send a stream to nowhere after a write to it has failed, so that later ones pass.

    Args:
        number: 1 for stdout, 2 for stderr.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
