"""``OUTPUT_DIR`` and the run in it: one run at a time works there, and none takes another's place.

``run.json`` names the run whose checkpoints the folder holds; every checkpoint names it, too. The
lock on ``.lock`` is the operating system's, which drops it when a process ends, however it ends.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from onenet.checkpoints.series import find_checkpoints, read_last_checkpoint
from onenet.data.sources import is_line, shortened
from onenet.errors import ConfigError
from onenet.files import lock_file, remove_partial_files, strict_json, write_whole

logger = logging.getLogger(__name__)
RECORD, LOCK, CONFIG, FINAL = "run.json", ".lock", "config.yaml", "model_final.pth"
# The weights of the best evaluation, and its figure.
BEST, BEST_RECORD = "model_best.pth", "model_best.json"
RESULTS = "inference"
# What a run leaves.
_OWN = re.compile(r"model_(\d{7,}|final|best)\.pth")
_CURVES = ("metrics.json", "metrics.csv", "events.out.tfevents.*", BEST_RECORD)
_DETECTIONS = ("coco_instances_results.json", "instances_predictions.pth", CONFIG)


class RunFolder:
    """The folder of a run; the first of its processes calls the methods.

    Args:
        path: ``OUTPUT_DIR``.

    Attributes:
        run: the id of the run: what the folder holds once :meth:`begin` is called.
        launch: names the start of several processes that restarts belong to; empty: none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        self.launch = ""
        self._known = False  # whether ``run`` is that of an earlier start
        self._without_id: list[str] = []  # names of this run's checkpoints that hold no id
        self._replaced: list[Path] = []
        self._place = ""  # whose place the run takes, for the log

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, which is created if necessary, for the time of the context.

        Raises:
            ConfigError: another run or evaluation works there.
            OSError: the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("a+b", buffering=0) as file:
            if not lock_file(file):
                file.seek(0)
                holder = file.read(200).decode(errors="replace").strip()
                raise ConfigError(
                    f"OUTPUT_DIR {self.path}: another run is working there"
                    f"{f' ({holder})' * is_line(holder) * bool(holder)}. Wait until it ends, stop "
                    "it, or give another OUTPUT_DIR"
                )
            with suppress(OSError):  # a full disk
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield

    def check(self, *, resume: bool, overwrite: bool, weights: str = "") -> None:
        """Decide what a training may do here, before it changes anything.

        Args:
            resume: continue the run in the folder, or start one where there is none.
            overwrite: start a run in place of the one in the folder.
            weights: ``MODEL.WEIGHTS``.

        Raises:
            ConfigError: the folder holds a run already, or cannot be used; names the ways out.
        """
        saved = find_checkpoints(self.path)
        final, best = self.path / FINAL, self.path / BEST
        files = [*saved, *([final] if final.is_file() and final not in saved else [])]
        if not resume and best.is_file():
            files.append(best)
        if overwrite:
            own = [path for path in self._find(("model_*.pth",)) if _OWN.fullmatch(path.name)]
            if weights and any(_same(path, weights) for path in own):
                raise ConfigError(
                    f"--overwrite would remove MODEL.WEIGHTS {weights}: move that file, or give "
                    "another OUTPUT_DIR"
                )
            self._replaced = [*own, *self._find(_CURVES), *self._find_detections()]
            return
        record = self._record()
        if resume:
            if files and not saved:
                raise ConfigError(
                    f"OUTPUT_DIR {self.path} holds {FINAL}, but no checkpoint to resume from. "
                    f"Start a new run in another OUTPUT_DIR, with MODEL.WEIGHTS {final} to go on "
                    "from these weights, or replace it with --overwrite"
                )
            if record:
                self.run, self._known = record["id"], True
                self._without_id = record.get("without_id", [])
        elif files:
            name = f"run {record['id']}" if record else "a run"
            raise ConfigError(
                f"OUTPUT_DIR {self.path} holds {name} already (its newest file: {files[0].name}). "
                "Continue it with --resume, give another OUTPUT_DIR, or replace it with --overwrite"
            )
        elif record:
            self._replaced = self._find(_CURVES)
            self._place = f", in place of {record['id']}, which saved no checkpoint"

    def was_launched_by(self, launch: str) -> bool:
        """Whether the run in the folder is one that the start called ``launch`` began."""
        record = self._record()
        return bool(record and launch and record.get("launch") == launch)

    def read_last(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to resume from and its content; ``None`` if the run has none yet.

        Checkpoints of another run are left out. A folder without ``run.json`` takes the id of its
        checkpoint; where that has none, all of them are taken for checkpoints of one run.

        Raises:
            CheckpointError: none of the run's checkpoints can be read.
        """
        found = read_last_checkpoint(self.path, self._foreign)
        if found is None:
            if self._known:
                logger.info(
                    "%s holds run %s, which has saved no checkpoint: starting it from the first "
                    "iteration",
                    self.path,
                    self.run,
                )
            else:
                logger.info("%s holds no checkpoint: starting from the first iteration", self.path)
            return None
        path, content = found
        if not self._known and "run" in content:
            self.run = content["run"]
            logger.info("%s is missing: going on with run %s, of %s", RECORD, self.run, path.name)
        elif not self._known:
            self._without_id = [file.name for file in find_checkpoints(self.path)]
            logger.info(
                "%s is of a version without run ids: taking all checkpoints in %s for those of one "
                "run, from now on %s",
                path.name,
                self.path,
                self.run,
            )
        self._known = True
        return found

    def _foreign(self, path: Path, content: Mapping[str, Any]) -> str | None:
        """Why a checkpoint is not this run's; ``None`` if it is."""
        run = content.get("run")
        if run is not None and not (isinstance(run, str) and is_line(run)):
            return f"{path}: 'run' must be the id of a run, got {run!r:.60}"
        if not self._known or run == self.run or (run is None and path.name in self._without_id):
            return None
        return (
            f"{path} is a checkpoint of {f'run {run}' if run else 'a run without an id'}, but "
            f"{self.path / RECORD} says that the folder holds run {self.run}"
        )

    def begin(self, config: str) -> None:
        """Make the folder this run's: its id, its config, and no file of a run it replaces.

        Args:
            config: the complete config as YAML.

        Raises:
            WriteError, OSError: a file cannot be written or removed.
        """
        record = {"id": self.run}
        if self._without_id:
            record["without_id"] = self._without_id
        if self.launch:
            record["launch"] = self.launch
        write_whole(self.path / RECORD, f"{strict_json(record)}\n".encode())
        for path in self._replaced:
            if path.name == _CURVES[0]:
                os.truncate(path, 0)  # Detectron2 has it open
            else:
                path.unlink(missing_ok=True)
        if not self._known:
            (self.path / "last_checkpoint").unlink(missing_ok=True)
        if self._replaced:
            names = shortened([path.relative_to(self.path).as_posix() for path in self._replaced])
            logger.info("Removed files of the run that was here: %s", names)
        remove_partial_files(self.path)
        write_whole(self.path / CONFIG, config.encode())
        with suppress(FileNotFoundError, NotADirectoryError):  # of results that get replaced
            (self.path / RESULTS / CONFIG).unlink()
        self._known = True
        logger.info("Run %s in %s%s", self.run, self.path, self._place)

    def note_evaluation(self, config: str) -> None:
        """Write the config of an evaluation beside its results.

        Raises:
            WriteError: it cannot be written.
        """
        write_whole(self.path / RESULTS / CONFIG, config.encode())

    def _record(self) -> dict[str, Any] | None:
        file = self.path / RECORD
        try:
            record = json.loads(file.read_bytes())
            whole = is_line(record["id"]) and all(map(is_line, record.get("without_id", [])))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise ConfigError(
                f"{file} is not what a run writes, {{'id': …}}: remove it to resume from the "
                "newest checkpoint there, or give another OUTPUT_DIR"
            )
        return record

    def _find(self, patterns: tuple[str, ...]) -> list[Path]:
        return [p for pattern in patterns for p in sorted(self.path.glob(pattern)) if p.is_file()]

    def _find_detections(self) -> list[Path]:
        found = (self.path / RESULTS).rglob("*")
        return [path for path in sorted(found) if path.name in _DETECTIONS and path.is_file()]


def _same(path: Path, other: str) -> bool:
    try:
        return path.samefile(os.path.expanduser(other))
    except (OSError, ValueError):
        return False
