"""The Python files of ``--import``, which register what a config names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from onenet.errors import ConfigError


def import_files(files: Sequence[str]) -> None:
    """Import Python files, each once per process; they can import files of their own folder.

    Raises:
        ConfigError: no such file, or another module has its name.
    """
    for file in files:
        path = Path(file).expanduser().resolve()
        if path.suffix != ".py" or not path.stem.isidentifier() or not path.is_file():
            raise ConfigError(
                f"--import {file}: expected an existing Python file with a name like my_rule.py"
            )
        if path.stem not in sys.modules:
            sys.path.append(str(path.parent))
        origin = getattr(importlib.import_module(path.stem), "__file__", None)
        if origin is None or Path(origin).resolve() != path:
            raise ConfigError(
                f"--import {file}: another module is called {path.stem} ({origin or 'built in'}); "
                "rename the file"
            )
