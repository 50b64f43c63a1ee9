"""Weights whose classes have other names, or another order, than the data set's."""

from __future__ import annotations

import pytest
import torch
from helpers.small_models import Detector, Small, same, saved
from torch import Tensor, nn

from onenet.checkpoints.weights import load_weights

CATS = ["cat", "dog", "cow"]


def class_layer(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "cls_score" in k}


def loaded(tmp_path, make, trained: list[str], ours: list[str], **options):
    """The models from whose weights and into which is loaded, the latter's class layer before, and
    the rest of the checkpoint."""
    source, model = make(), make()
    for parameter in (*source.parameters(), *model.parameters()):
        nn.init.normal_(parameter)
    before = class_layer(model)
    weights = saved(tmp_path / "m.pth", {"model": source.state_dict(), "class_names": trained})
    rest = load_weights(model, weights, class_names=ours, **options)
    others = {k: v for k, v in source.state_dict().items() if "cls_score" not in k}
    assert same(model, others)
    return source, model, before, rest


def rows(state: dict[str, Tensor], label: int) -> list[Tensor]:
    """The class layer's values for one of three classes: every third row from its label on."""
    return [value[label::3] for name, value in sorted(state.items()) if "cls_score" in name]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == 2 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class TwoAnchors(Small):
    """Its class layer has 2 · 3 rows."""

    def __init__(self) -> None:
        super().__init__(classes=6)


@pytest.mark.parametrize("make", [Small, Detector, TwoAnchors])
@pytest.mark.parametrize("tuning", [True, False])
def test_a_permutation_is_mapped_by_name(tmp_path, caplog, make, tuning):
    options = {"new_classes": True} if tuning else {"detector": True}
    with caplog.at_level("INFO"):
        source, model, _, rest = loaded(tmp_path, make, CATS, ["dog", "cow", "cat"], **options)
    for ours, theirs in ((0, 1), (1, 2), (2, 0)):
        assert equal(rows(model.state_dict(), ours), rows(source.state_dict(), theirs))
    assert rest["class_names"] == ["dog", "cow", "cat"]
    assert "(cat, dog, cow; here dog, cow, cat): the class layer is mapped by name" in caplog.text


def test_to_fine_tune_new_names_reset_the_class_layer(tmp_path, caplog):
    with caplog.at_level("INFO"):
        _, model, before, _ = loaded(tmp_path, Small, CATS, ["a", "b", "c"], new_classes=True)
    assert same(model, before)
    told = "on none of the same name (cat, dog, cow; here a, b, c): the class layer keeps its init"
    assert told in caplog.text


def test_to_fine_tune_shared_names_keep_their_rows(tmp_path, caplog):
    ours = ["dog", "horse", "cow"]
    with caplog.at_level("INFO"):
        source, model, before, _ = loaded(tmp_path, Small, CATS, ours, new_classes=True)
    assert equal(rows(model.state_dict(), 0), rows(source.state_dict(), 1))
    assert equal(rows(model.state_dict(), 1), rows(before, 1))
    assert equal(rows(model.state_dict(), 2), rows(source.state_dict(), 2))
    told = "2 of them of the same name: the class layer takes over dog, cow by name; horse keep"
    assert told in caplog.text


@pytest.mark.parametrize("ours", [["a", "b", "c"], ["dog", "horse", "cow"]])
def test_to_evaluate_other_names_leave_the_order(tmp_path, ours):
    """The caller warns, see ``compare_classes``."""
    source, model, _, rest = loaded(tmp_path, Small, CATS, ours, detector=True)
    assert same(model, class_layer(source)) and rest["class_names"] == CATS


@pytest.mark.parametrize("trained", [[], ["cat", "cat", "dog"], ["cat", "dog"]])
def test_without_a_name_for_each_class_the_order_is_kept_and_told(tmp_path, caplog, trained):
    with caplog.at_level("INFO"):
        source, model, _, _ = loaded(tmp_path, Small, trained, CATS, new_classes=True)
    assert same(model, class_layer(source))
    assert "its class layer is kept, in the order of category ids" in caplog.text


def test_the_same_names_are_no_news(tmp_path, caplog):
    with caplog.at_level("INFO"):
        source, model, _, _ = loaded(tmp_path, Small, CATS, CATS, new_classes=True)
    assert same(model, class_layer(source)) and len(caplog.messages) == 1  # "Loaded 10 arrays"


def test_a_layer_that_cannot_be_mapped_is_reset(tmp_path, caplog):
    """Of a detector with a background class."""

    def make() -> Small:
        model = Small()
        model.first_label = 1
        return model

    order = ["dog", "cow", "cat"]
    with caplog.at_level("INFO"):
        _, model, before, _ = loaded(tmp_path, make, CATS, order, new_classes=True)
    assert same(model, before) and "cannot be mapped by name: it keeps its init" in caplog.text
    source, model, _, rest = loaded(tmp_path, make, CATS, order, detector=True)
    assert same(model, class_layer(source)) and rest["class_names"] == CATS
