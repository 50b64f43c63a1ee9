"""The configs that come with the package, found by name wherever it is installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from onenet.errors import ConfigError, did_you_mean

_PACKAGE = Path(__file__).parents[1]
# In the repository, and below SHIPPED in an installed package, to which setup.py copies them.
FOLDERS = (
    "projects/OneNet/configs",
    "configs/recipes",
    "configs/quick_schedules",
    "configs/baselines",
)
SHIPPED = "shipped"


def _roots() -> Iterator[Path]:
    yield _PACKAGE / SHIPPED
    repository = _PACKAGE.parents[2]
    if repository / "projects" / "OneNet" / "onenet" == _PACKAGE:
        yield repository


def shipped_configs() -> dict[str, Path]:
    """The file of each config by its name, such as ``onenet.res50.dcn.yaml``."""
    folders = [root / folder for root in _roots() for folder in FOLDERS]
    return {path.name: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str | Path) -> Path:
    """The file of a config: a path, or the name of a config that comes with the package.

    A file of that name in the working folder comes first; ``.yaml`` may be left out.

    Raises:
        ConfigError: a name without folders that is neither; names the nearest.
    """
    path = Path(os.path.expanduser(name))
    if len(path.parts) != 1 or os.path.exists(path):  # unlike Path.exists, raises nothing
        return path
    shipped = shipped_configs()
    for known in (path.name, f"{path.name}.yaml"):
        if known in shipped:
            return shipped[known]
    raise ConfigError(
        f"config file {str(name)!r:.200} does not exist, and no config of that name comes with the "
        f"package{did_you_mean(path.name, shipped)}"
    )
