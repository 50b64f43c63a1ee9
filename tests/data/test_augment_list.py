"""INPUT.AUGMENTATIONS: how the list is read and checked, and what users may add to it."""

from __future__ import annotations

import inspect
import pickle
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode
from helpers.project import ROOT

from onenet import AUGMENTATION_REGISTRY, Augmentation
from onenet.data.augment.build import Augmentations, build_augmentation, build_augmentations
from onenet.data.augment.item import Item
from onenet.errors import ConfigError

BUILT_IN = ["photometric", "grey", "blur", "jpeg", "flip", "scale_jitter", "crop", "affine"]
BUILT_IN += ["mosaic", "mixup"]


def grey_item() -> Item:
    """4 x 4 px of 128 with one object."""
    image = np.full((4, 4, 3), 128, np.uint8)
    return Item(image, torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([0]))


def no_draw(random: np.random.Generator) -> Item:
    raise AssertionError("these augmentations need no other image")


def settings(
    *texts: str, off: float = 0.25, flip: str = "horizontal", crop: bool = True
) -> CfgNode:
    return CfgNode(
        {
            "INPUT": {
                "AUGMENTATIONS": list(texts),
                "AUGMENTATIONS_OFF": off,
                "RANDOM_FLIP": flip,
                "CROP": {"ENABLED": crop},
            },
            "SOLVER": {"MAX_ITER": 8},
        }
    )


@pytest.mark.parametrize(("off", "first"), [(0.0, 8), (0.25, 6), (1.0, 0)])
def test_strong_ones_stop_before_the_end(off, first):
    augmentations = build_augmentations(settings("mosaic", "flip", "mixup", "affine", off=off))
    names = [[type(one).__name__ for one in augmentations.at(i)] for i in range(8)]
    assert names == [["mosaic", "flip", "mixup", "affine"]] * first + [["flip", "affine"]] * (
        8 - first
    )


def test_a_flip_or_crop_in_the_list_takes_the_place_of_its_key(caplog):
    def rest(*texts: str, **keys) -> tuple[str, bool]:
        cfg = settings(*texts, **keys)
        return build_augmentations(cfg).rest(cfg)

    assert rest() == rest("mosaic") == rest("flip(vertical)") == ("horizontal", True)
    with caplog.at_level("INFO", logger="onenet"):
        assert rest("flip") == ("none", True)
        assert rest("flip", "flip(vertical)", "crop", flip="vertical") == ("none", False)
    assert "INPUT.AUGMENTATIONS has a horizontal flip, in place of INPUT.RANDOM_FLIP" in caplog.text


def test_workers_can_be_sent_them():
    augmentations = build_augmentations(settings(*BUILT_IN))
    assert pickle.loads(pickle.dumps(augmentations)) == augmentations


def test_parameters_by_place_by_name_and_as_bare_words():
    one = build_augmentation(" scale_jitter( 0.7, high = 3 ) ")
    assert (one.low, one.high, one.probability) == (0.7, 3, 1.0)
    assert build_augmentation("flip(vertical)") == build_augmentation("flip('vertical')")
    assert build_augmentation("flip") == build_augmentation("flip()")


REFUSED = {
    "mozaic": "INPUT.AUGMENTATIONS must be one of .*mosaic.*, got 'mozaic'; did you mean 'mosaic'",
    "mosaic(lo=1)": r"mosaic has no parameter 'lo'; did you mean 'low'\?; expected mosaic\(low=0.5",
    "flip(upward)": "'flip.upward.': direction is 'upward'; expected one of horizontal, vertical",
    "scale_jitter(0.5, 0.7)": "high is 0.7; expected a number from 1 to 10",
    "blur(sigma=fine)": "sigma is 'fine'; expected a number",
    "mixup(alpha=1e999)": "alpha is inf; expected a number",
    "grey(probability=True)": "probability is True; expected a number from 0 to 1",
    "crop(1, 1, 1)": r"too many positional arguments; expected crop\(smallest=0.6, min_visible",
    "flip(": "has 'flip.'; expected a name, perhaps with parameters",
    "flip(**{})": "expected a name",
    "os.abort()": "expected a name",
    "crop(open('x'))": "expected a name",
    "a b": "expected a name",
    "": "expected a name",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text):
    with pytest.raises(ConfigError, match=REFUSED[text]) as error:
        build_augmentations(settings("flip", text))
    assert str(error.value).startswith("INPUT.AUGMENTATIONS")


def test_the_same_twice_is_refused():
    with pytest.raises(ConfigError, match="has 'flip.horizontal.' twice"):
        build_augmentations(settings("flip", "mosaic", "flip(horizontal)"))
    assert len(build_augmentations(settings("flip", "flip(vertical)")).entries) == 2


def test_one_of_your_own(monkeypatch):
    @dataclass(frozen=True)
    class invert(Augmentation):
        most: int = 255

        def apply(self, item, random, draw):
            return replace(item, image=self.most - item.image)

    def plain(*, least):
        return lambda item, random, draw: replace(item, image=item.image.clip(least))

    monkeypatch.setattr(AUGMENTATION_REGISTRY, "_obj_map", dict(AUGMENTATION_REGISTRY))
    AUGMENTATION_REGISTRY.register(invert)
    AUGMENTATION_REGISTRY.register(plain)
    augmentations = build_augmentations(settings("invert(most=200)", "plain(least=90)"))
    found = augmentations(grey_item(), 0, np.random.default_rng(0), no_draw)
    assert (found.image == 90).all()
    assert [one for one in augmentations.at(7)] == list(augmentations.entries)
    with pytest.raises(
        ConfigError, match="missing a required argument: 'least'; expected plain.least."
    ):
        build_augmentation("plain")


WRONG = {
    "nothing": (lambda item: None, "gave NoneType; expected an item"),
    "floats": (lambda item: replace(item, image=item.image / 255), "image of float64 .4, 4, 3.;"),
    "grey": (lambda item: replace(item, image=item.image[..., 0]), "image of uint8 .4, 4.; exp"),
    "fewer": (lambda item: replace(item, boxes=item.boxes[:0]), r"boxes of shape \(0, 4\) with"),
    "nan": (lambda item: replace(item, boxes=item.boxes * torch.nan), "boxes that are not finite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_one_of_your_own_that_gives_something_else(kind):
    change, told = WRONG[kind]

    def mine(item, random, draw):
        return change(item)

    with pytest.raises(ConfigError, match=f"INPUT.AUGMENTATIONS: .*mine.* .*{told}"):
        item = grey_item()
        Augmentations((mine,), weak_from=1)(item, 0, np.random.default_rng(0), no_draw)


def test_the_page_has_every_augmentation_with_its_defaults():
    page = (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8")
    table = page.partition("## The augmentations")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE)
    told = {name: re.findall(r"`(\w+)` ([\w.]+)", cell) for name, cell in rows}
    assert list(told) and set(told) == set(BUILT_IN)
    for name, parameters in told.items():
        signature = inspect.signature(dict(AUGMENTATION_REGISTRY)[name]).parameters
        defaults = {key: one.default for key, one in signature.items()}
        assert {key: type(defaults[key])(value) for key, value in parameters} == defaults
