"""The detectors that the page offers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from onenet.api.detector import ONNX, Detector, load
from onenet.errors import CheckpointError

# In a folder, what is offered: the weights that a training ends with, and exported files.
_PATTERNS = ("model_final.pth", "model_best.pth", f"*{ONNX}")
_KEPT = 2  # loaded at a time, as many as are compared


class Models:
    """Detectors by the name that the page shows; each is loaded when it is first used.

    Args:
        places: checkpoints, exported files, addresses, and folders, which are searched with their
            subfolders for ``model_final.pth``, ``model_best.pth`` and ``*.onnx``.
        config: of the checkpoints; ``None``: the one in each, or beside it.
        engine: see :func:`onenet.load`.
        device: ``MODEL.DEVICE`` of the checkpoints; ``None``: their config's.

    Attributes:
        names: of the detectors, in the order of ``places``.

    Raises:
        CheckpointError: a place does not exist, or a folder holds none of these files.
    """

    def __init__(
        self,
        places: Sequence[str],
        config: str | None = None,
        *,
        engine: str = "auto",
        device: str | None = None,
    ) -> None:
        self.names = list(dict.fromkeys(name for place in places for name in _find(place)))
        self.config, self.engine = config, engine
        self.overrides = {} if device is None else {"device": device}
        self._loaded: OrderedDict[str, Detector] = OrderedDict()
        self._lock = Lock()

    @property
    def checkpoints(self) -> list[str]:
        """The names that are not exported files."""
        return [name for name in self.names if not name.endswith(ONNX)]

    def load(self, name: str) -> Detector:
        """The detector of a name; the one that was used longest ago makes room for it.

        Raises:
            CheckpointError: the page does not offer it, or it cannot be loaded.
        """
        if name not in self.names:
            raise CheckpointError(f"the page does not offer {name!r}; choose one from the list")
        with self._lock:
            if name not in self._loaded:
                # Made room for first, so that three are never in memory.
                while len(self._loaded) >= _KEPT:
                    self._loaded.popitem(last=False)
                exported = name.endswith(ONNX)
                options = {} if exported else {"engine": self.engine, **self.overrides}
                self._loaded[name] = load(name, None if exported else self.config, **options)
            self._loaded.move_to_end(name)
            return self._loaded[name]


def _find(place: str) -> list[str]:
    path = Path(place).expanduser()
    if "://" in place or path.is_file():
        return [place]
    if not path.is_dir():
        raise CheckpointError(f"--models {place}: no such file or folder")
    found = [str(file) for pattern in _PATTERNS for file in sorted(path.rglob(pattern))]
    if not found:
        raise CheckpointError(
            f"--models {place}: the folder holds none of {', '.join(_PATTERNS)}; name the files"
        )
    return found
