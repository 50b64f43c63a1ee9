"""Which engine runs, and what is said where Detectron2 is missing or broken."""

from __future__ import annotations

import importlib
import importlib.util
from types import SimpleNamespace

import pytest

from onenet import cli
from onenet.errors import ConfigError


@pytest.fixture
def world(monkeypatch):
    """Say whether Detectron2 is found, and what importing a module does."""

    def pretend(found: bool, imported=None):
        def import_module(name):
            if isinstance(imported, Exception):
                raise imported
            return SimpleNamespace(__version__="0.6")

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: found or None)
        monkeypatch.setattr(importlib, "import_module", import_module)

    return pretend


def test_auto_takes_detectron2_where_it_can_be_imported(world):
    world(found=True)
    assert cli.choose_engine("auto") == ("onenet.d2", "Detectron2 0.6 is installed")


def test_auto_takes_the_embedded_engine_otherwise_and_says_why(world):
    world(found=False)
    assert cli.choose_engine("auto") == ("onenet.lightning", "Detectron2 is not installed")


@pytest.mark.parametrize("error", [ImportError("no _C"), OSError("undefined symbol")])
def test_a_broken_build_is_told(world, error):
    world(found=True, imported=error)
    package, why = cli.choose_engine("auto")
    assert package == "onenet.lightning"
    assert str(error) in why and "cannot be imported" in why
    with pytest.raises(ConfigError, match=f"cannot be imported.*{error}.*docs/detectron2.md"):
        cli.choose_engine("detectron2")


def test_asking_for_a_missing_detectron2_says_what_to_do(world):
    world(found=False)
    with pytest.raises(ConfigError, match="not installed.*docs/detectron2.md.*torch.*--engine out"):
        cli.choose_engine("detectron2")


def test_lightning_does_not_look_for_detectron2(world):
    world(found=True, imported=RuntimeError("must not be imported"))
    assert cli.choose_engine("lightning")[0] == "onenet.lightning"
