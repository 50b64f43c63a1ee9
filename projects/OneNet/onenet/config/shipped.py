"""The configs that come with the package, found by name wherever it is installed."""

from __future__ import annotations

from pathlib import Path

from onenet.errors import ConfigError, did_you_mean

# In an installed package, and in the repository.
_FOLDERS = (
    Path(__file__).parents[1] / "configs",
    Path(__file__).parents[2] / "configs",
    Path(__file__).parents[4] / "configs",
)


def shipped_configs() -> dict[str, Path]:
    """The file of each config by its name, such as ``onenet.res50.dcn.yaml``."""
    found: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in sorted(folder.rglob("*.yaml")) if folder.is_dir() else ():
            if "ablations" not in path.parts:
                found.setdefault(path.name, path)
    return found


def find_config(name: str | Path) -> Path:
    """The file of a config: a path, or the name of a config that comes with the package.

    A file of that name in the working folder comes first; ``.yaml`` may be left out.

    Raises:
        ConfigError: there is neither; names the nearest.
    """
    path = Path(name).expanduser()
    if path.exists() or len(path.parts) > 1:
        return path
    shipped = shipped_configs()
    for known in (path.name, f"{path.name}.yaml"):
        if known in shipped:
            return shipped[known]
    raise ConfigError(
        f"config file {name} does not exist, nor does a config of that name come with the package"
        f"{did_you_mean(path.name, shipped)}"
    )
