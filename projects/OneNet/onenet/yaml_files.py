"""Config files: plain YAML that may build on other files; nothing in them is ever executed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

BASE_KEY = "_BASE_"


class ConfigError(ValueError):
    """A config that can't be used; the message says where and what to write."""


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys, and a whole section is gone; refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_with_bases(
    path: Path, children: tuple[Path, ...] = ()
) -> Iterator[tuple[Path, dict[Any, Any]]]:
    """Yield (file, its values) for ``path`` and its bases, those that others build on first."""
    named_by = f", named by {BASE_KEY} in {children[-1]}," if children else ""
    if path.resolve() in [child.resolve() for child in children]:
        raise ConfigError(f"{children[-1]}: {BASE_KEY} {path} leads back to itself")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file {path}{named_by} does not exist") from None
    except OSError as error:
        raise ConfigError(f"config file {path}{named_by} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config file {path}{named_by} is not YAML: it is not text") from None
    values = _parse(text, path)
    bases = values.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: {BASE_KEY} is {bases!r}; expected a path or a list of paths")
    for base in bases:
        yield from read_with_bases(path.parent / Path(base).expanduser(), (*children, path))
    yield path, values


def _parse(text: str, path: Path) -> dict[Any, Any]:
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        line = f", line {mark.line + 1}" if mark else ""
        if isinstance(error, yaml.constructor.ConstructorError) and "the tag" in problem:
            tag = problem.rpartition("the tag ")[2].strip("'").replace("tag:yaml.org,2002:", "!!")
            raise ConfigError(
                f"{path}{line}: the tag {tag} would execute code or make an object, which a config "
                f"never does; write the plain values{_anchor_sizes(text, mark)}"
            ) from None
        raise ConfigError(f"{path}{line} is not YAML that can be used: {problem}") from None
    if not isinstance(values, dict):
        what = "is empty" if values is None else f"holds {type(values).__name__}"
        raise ConfigError(
            f"config file {path} {what}; expected sections such as MODEL: and SOLVER:"
        )
    return values


def _anchor_sizes(text: str, mark: yaml.Mark) -> str:
    """What to write for the anchor sizes that the original computes in its YAML."""
    if "SIZES" not in text.splitlines()[mark.line]:
        return ""
    sizes = [[size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)] for size in (32, 64, 128, 256, 512)]
    return f"; the original OneNet's anchors are SIZES: {sizes}"
