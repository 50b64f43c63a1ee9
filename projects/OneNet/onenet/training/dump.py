"""The file in which training leaves a batch that it stopped on; :mod:`.replay` reads it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from onenet.checkpoints.files import read_checkpoint, save_checkpoint
from onenet.data.sources import is_line
from onenet.errors import CheckpointError
from onenet.structures import Targets

from .distributed import processes, rank


@dataclass(frozen=True)
class Dump:
    """What one process computed an iteration from.

    Attributes:
        iteration: counted from 1.
        what: the values that were not finite.
        engine: that wrote it, a value of ``--engine``.
        config: of the run, as YAML.
        seed: of the run.
        precision: of the network, such as "bfloat16".
        torch: its version.
        model: weights and buffers before the iteration.
        images: (3, H, W) uint8 each, after augmentation.
        boxes, labels: targets of each image, see :class:`~onenet.structures.Targets`.
        files: the images' paths.
    """

    iteration: int
    what: str
    engine: str
    config: str
    seed: int
    precision: str
    torch: str
    model: dict[str, Tensor]
    images: list[Tensor]
    boxes: list[Tensor]
    labels: list[Tensor]
    files: list[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = {"int": int, "str": str, "dict[str, Tensor]": dict}.get(field.type, list)
            if not isinstance(getattr(self, field.name), kind):
                raise ValueError(f"{field.name} is not of type {field.type}")
        for name in ("what", "precision", "torch"):
            if not is_line(getattr(self, name)):
                raise ValueError(f"{name} is not a line of text")
        if not all(map(is_line, self.files)):
            raise ValueError("a file name is not a line of text")
        if not len(self.images) == len(self.boxes) == len(self.labels) == len(self.files) > 0:
            raise ValueError("it needs an image, and as many boxes, labels and files as images")
        if not all(isinstance(t, Tensor) for t in (*self.images, *self.boxes, *self.labels)):
            raise ValueError("images, boxes or labels are not tensors")
        if not all(image.ndim == 3 for image in self.images):
            raise ValueError("an image does not have three dimensions")

    @property
    def targets(self) -> list[Targets]:
        """The targets of each image."""
        sizes = [tuple(image.shape[-2:]) for image in self.images]
        return list(map(Targets, self.boxes, self.labels, sizes))

    def save(self, folder: Path, rank: int | None = None) -> Path:
        """Write ``nonfinite_NNNNNNN.pt``, named by the iteration, and return its path.

        Args:
            rank: of this process where there are several; it becomes part of the name.

        Raises:
            WriteError: the file cannot be written.
        """
        process = "" if rank is None else f"_rank{rank}"
        path = folder / f"nonfinite_{self.iteration:07d}{process}.pt"
        save_checkpoint(path, {field.name: getattr(self, field.name) for field in fields(self)})
        return path

    @classmethod
    def read(cls, path: Path) -> Dump:
        """Read a dump; nothing in it is executed.

        Raises:
            CheckpointError: the file is missing, broken, or no dump.
        """
        content = read_checkpoint(path)
        try:
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path} is no dump of a batch: {error}") from error


def dump_batch(
    folder: Path,
    model: nn.Module,
    batch: Iterable[tuple[Tensor, Targets, str]],
    *,
    iteration: int,
    what: str,
    engine: str,
    config: str,
    seed: int,
    precision: str,
) -> Path:
    """Write this process' share of a batch to a folder; see :class:`Dump` for the arguments.

    Args:
        model: as it was before the iteration.
        batch: image, targets and file name of each item.

    Raises:
        WriteError: the file cannot be written.
    """
    images, targets, files = zip(*batch, strict=True)
    content = Dump(
        iteration=iteration,
        what=what,
        engine=engine,
        config=config,
        seed=seed,
        precision=precision,
        torch=str(torch.__version__),
        model={name: value.cpu() for name, value in model.state_dict().items()},
        images=list(images),
        boxes=[one.boxes for one in targets],
        labels=[one.labels for one in targets],
        files=list(files),
    )
    return content.save(folder, rank() if processes() > 1 else None)
