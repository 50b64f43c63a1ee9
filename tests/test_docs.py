"""The Markdown pages: examples, links, named files and imported names are all there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.project import ROOT

import onenet

PACKAGE_README = ROOT / "projects" / "OneNet" / "README.md"
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    PACKAGE_README,
    ROOT / "tests" / "golden" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", read(page), re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings}


def broken_links(page: Path) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)]+)\)", read(page)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


def imported_names(code: str) -> Iterator[str]:
    """What an example imports from the package; names of its modules with their dots."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "onenet":
            below = node.module.removeprefix("onenet").lstrip(".")
            yield from (f"{below}.{name.name}" if below else name.name for name in node.names)
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("onenet."):
                    yield name.name.removeprefix("onenet.")


def test_python_examples_run():
    scope: dict = {}
    for block in python_blocks(PACKAGE_README):
        exec(block, scope)
    assert set(scope["losses"]) == {"loss_ce", "loss_giou", "loss_bbox"}
    assert len(scope["detections"]) == 100


@each_page
def test_links_lead_somewhere(page):
    assert not list(broken_links(page))


@each_page
def test_files_that_are_named_exist(page):
    text = read(page)
    named = re.findall(
        r"(?<![\w/.])(?:projects|configs|tools|demo|tests)/[\w./-]+\.(?:py|yaml)(?!::)", text
    )
    named += [
        f"projects/OneNet/{name}" for name in re.findall(r"(?<![\w/.])onenet/[\w./-]+\.py", text)
    ]
    assert len(named) > 5 or page != PAGES[0]
    assert not [name for name in named if not (ROOT / name).exists()]


@each_page
def test_examples_import_from_the_package_itself(page):
    """Not from its modules, which may move."""
    in_prose = re.findall(r"`(from onenet[\w.]* import [\w, ]+)`", read(page))
    codes = [*python_blocks(page), *in_prose]
    assert {name for code in codes for name in imported_names(code)} <= set(onenet.__all__)


@pytest.mark.parametrize("name", onenet.__all__)
def test_every_public_name_is_there(name):
    assert getattr(onenet, name) is not None


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "README.md"
    links = re.findall(r"\]\(([\w.]+\.md)\)", read(index))
    assert {page.name for page in PAGES if page.parent == index.parent} - {index.name} <= set(links)
