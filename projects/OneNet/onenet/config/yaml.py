"""Config files: plain YAML that may build on other files; nothing in them is ever executed.

Detectron2's and the original's RetinaNet files compute their anchor sizes with a tag that runs
Python. That one expression is known here, as text, and stands for its numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from onenet.errors import ConfigError

from .shipped import find_config

BASE_KEY = "_BASE_"

MOST_NODES = 10_000  # of a file, what aliases repeat counted each time
MOST_LEVELS = 50  # of lists and mappings within each other; PyYAML takes their number squared
MOST_CHARACTERS = 200_000  # of a file; PyYAML reads about as many in a second
MOST_FILES = 100  # that one builds on

_EVAL = "tag:yaml.org,2002:python/object/apply:eval"
_ANCHORS = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"


def fits_64_bits(value: Any) -> bool:
    """Whether the whole numbers in a value, which may be a list of lists, are ordinary ones."""
    if isinstance(value, list | tuple | set):
        return all(map(fits_64_bits, value))
    return not isinstance(value, int) or abs(value) < 2**63


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys, and a whole section is gone; refuse them.

    So are a few lines of aliases that stand for more than any memory holds.
    """

    def fetch_flow_collection_start(self, token: type) -> None:
        if self.flow_level >= MOST_LEVELS:
            raise yaml.MarkedYAMLError(
                problem="it is nested too deep", problem_mark=self.get_mark()
            )
        super().fetch_flow_collection_start(token)

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _count_nodes(node, {}) > MOST_NODES:
            raise yaml.MarkedYAMLError(
                problem=f"with its aliases it holds more than {MOST_NODES} values",
                problem_mark=node.start_mark,
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                value = self.construct_object(key)  # 1 and 0x1 are one key, as are 1 and true
                if value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value} is there twice", problem_mark=key.start_mark
                    )
                seen.add(value)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Python would take thousands of digits, and then refuse to show them in an error."""
        number = super().construct_yaml_int(node)
        if not fits_64_bits(number):
            raise yaml.MarkedYAMLError(
                problem=f"{node.value:.20}… has more than 64 bits", problem_mark=node.start_mark
            )
        return number

    def construct_anchors(self, node: yaml.Node) -> list[list[float]]:
        """The numbers that the known expression stands for; any other is refused."""
        words = node.value if isinstance(node, yaml.SequenceNode) else []
        if [word.value for word in words] != [_ANCHORS]:
            return self.construct_undefined(node)
        return _anchor_sizes()


_Loader.add_constructor(_EVAL, _Loader.construct_anchors)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _count_nodes(node: yaml.Node, known: dict[int, float]) -> float:
    """Nodes of a tree, shared ones each time; infinite where one lies within itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in children for part in pair]
        known[id(node)] = 1 + sum(_count_nodes(child, known) for child in children)
    return known[id(node)]


def read_with_bases(path: Path) -> Iterator[tuple[Path, dict[Any, Any]]]:
    """Yield (file, its values) for ``path`` and its bases, those that others build on first.

    Args:
        path: a file, or the name of a config that comes with the package.

    Raises:
        ConfigError: a file that cannot be read or is no YAML, bases without an end or too many.
    """
    yield from _read(find_config(path), (), count(1))


def _read(
    path: Path, children: tuple[Path, ...], number: Iterator[int]
) -> Iterator[tuple[Path, dict[Any, Any]]]:
    named_by = f", named by {BASE_KEY} in {children[-1]}," if children else ""
    if next(number) > MOST_FILES:
        raise ConfigError(f"config file {path}{named_by} is one of more than {MOST_FILES}")
    try:
        if path.resolve() in [child.resolve() for child in children]:
            raise ConfigError(f"{children[-1]}: {BASE_KEY} {path} leads back to itself")
        if children and path.exists() and not path.is_file():
            # Such as /dev/zero, which has no end; the user's own word is taken for the first file.
            raise ConfigError(f"config file {path}{named_by} can't be read: it is no regular file")
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except ConfigError:
        raise
    except FileNotFoundError:
        raise ConfigError(f"config file {path}{named_by} does not exist") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config file {path}{named_by} is not YAML: it is not text") from None
    except (OSError, RuntimeError, ValueError) as error:  # the last two: what is no path at all
        what = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"config file {str(path)!r:.200}{named_by} can't be read: {what}"
        ) from None
    values = parse(text, path)
    bases = values.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: {BASE_KEY} is {bases!r}; expected a path or a list of paths")
    for base in bases:
        yield from _read(path.parent / os.path.expanduser(base), (*children, path), number)
    yield path, values


def parse(
    text: str, path: Path, expected: str = "sections such as MODEL: and SOLVER:"
) -> dict[Any, Any]:
    """The mapping that a YAML file holds.

    Args:
        text: content of the file.
        path: the file, for messages.
        expected: what the mapping should hold, for messages.

    Raises:
        ConfigError: the file is too long, or not YAML, or holds no mapping.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(
            f"{path} has more than {MOST_CHARACTERS} characters; is it the right file?"
        )
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
                f"never does; write the plain values{_advice(text, mark)}"
            ) from None
        raise ConfigError(f"{path}{line} is not YAML that can be used: {problem}") from None
    except Exception as error:  # PyYAML's readers of dates and numbers check little
        what = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{path} is not YAML that can be used: {what}") from None
    if not isinstance(values, dict):
        what = "is empty" if values is None else f"holds {type(values).__name__}"
        raise ConfigError(f"{path} {what}; expected {expected}")
    return values


def _anchor_sizes() -> list[list[float]]:
    """Three anchors an octave on five levels, px (arXiv 1708.02002, section 4)."""
    return [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in (32, 64, 128, 256, 512)]


def _advice(text: str, mark: yaml.Mark) -> str:
    """What to write for computed anchor sizes."""
    if "SIZES" not in text.splitlines()[mark.line]:
        return ""
    return f"; RetinaNet's anchors are SIZES: {_anchor_sizes()}"
