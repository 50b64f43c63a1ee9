"""What the READMEs say can be done."""

from __future__ import annotations

import re

import pytest
from helpers.project import ROOT

READMES = [ROOT / "README.md", ROOT / "projects" / "OneNet" / "README.md"]


def test_python_examples_run():
    text = READMES[1].read_text(encoding="utf-8")
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, scope)
    assert set(scope["losses"]) == {"loss_ce", "loss_giou", "loss_bbox"}
    assert len(scope["detections"]) == 100


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(readme):
    text = readme.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    named = re.findall(r"(?:projects|configs|tools|demo)/[\w./]+\.(?:py|yaml)", text)
    assert len(named) > 5 or readme != READMES[0]
    missing = [link for link in links if not (readme.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing
