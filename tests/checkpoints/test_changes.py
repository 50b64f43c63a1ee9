"""What a resumed run may change in its config: applied and logged, or refused by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onenet.checkpoints.changes import (
    MAY_CHANGE,
    STREAM,
    compare,
    compare_data,
    flat,
    may_change,
    saved_config,
)
from onenet.errors import CheckpointError, ConfigError
from onenet.lightning.config import get_cfg
from onenet.lightning.detectron2_keys import detectron2_only

PATH = Path("run") / "model_0000003.pth"
DEFAULTS = flat(get_cfg())


def compared(changes: dict[str, Any], *, stream: bool = True, done: int = 4) -> None:
    compare(DEFAULTS, {**DEFAULTS, **changes}, path=PATH, done=done, stream=stream)


def test_the_names_are_keys():
    names = [name for name, less in MAY_CHANGE.items() for name in (name, *less)]
    for name in (*names, *STREAM):
        known = name in DEFAULTS or any(key.startswith(f"{name}.") for key in DEFAULTS)
        assert known or detectron2_only(name), name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", 0.1),
        ("SOLVER.WEIGHT_DECAY", 0.1),
        ("SOLVER.STEPS", [1]),
        ("SOLVER.MAX_ITER", 4),
        ("SOLVER.CHECKPOINT_PERIOD", 1),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", True),
        ("SOLVER.ACCUMULATE", 2),
        ("DATALOADER.NUM_WORKERS", 0),
        ("DATALOADER.SKIP_UNREADABLE", True),
        ("DATASETS.TEST", ["other"]),
        ("INPUT.MIN_SIZE_TRAIN", [640]),
        ("TEST.EVAL_PERIOD", 5),
        ("MODEL.DEVICE", "cpu"),
        ("HOOKS", ["Mine"]),
    ],
)
def test_what_may_change_is_logged(caplog, key, value):
    with caplog.at_level("INFO"):
        compared({key: value})
    assert caplog.messages == [f"Changed from iteration 5 on: {key} {DEFAULTS[key]!r} -> {value!r}"]


REFUSED = {
    "MODEL.META_ARCHITECTURE": "CenterNet",
    "MODEL.OneNet.HEAD": "FCOS",
    "MODEL.OneNet.NUM_CLASSES": 3,
    "MODEL.OneNet.NUM_HEADS": 3,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.PIXEL_STD": [2.0, 2.0, 2.0],
    "MODEL_EMA.ENABLED": True,
    "INPUT.FORMAT": "RGB",
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.IMS_PER_BATCH": 8,
    "DATALOADER.ASPECT_RATIO_GROUPING": False,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    "SEED": 5,
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_may_not_change_is_refused_by_its_key(key):
    with pytest.raises(CheckpointError) as error:
        compared({key: REFUSED[key], "SOLVER.BASE_LR": 0.1})
    assert str(error.value) == (
        f"{PATH} cannot be resumed with this config: {key} is {REFUSED[key]!r}, its run had "
        f"{DEFAULTS[key]!r}. Resume with the config of its run, or start a new run in another "
        f"OUTPUT_DIR with MODEL.WEIGHTS {PATH}"
    )


def test_every_key_that_is_refused_is_named():
    with pytest.raises(CheckpointError) as error:
        compared(REFUSED)
    assert all(f"{key} is " in str(error.value) for key in REFUSED)


def test_without_a_stream_that_goes_on_the_batch_may_change(caplog):
    with caplog.at_level("INFO"):
        compared({"SOLVER.IMS_PER_BATCH": 8, "DATALOADER.NUM_WORKERS": 0}, stream=False)
    assert len(caplog.messages) == 2 and not may_change("SEED", stream=False)


def test_fewer_iterations_than_are_done_are_refused():
    with pytest.raises(CheckpointError, match="SOLVER.MAX_ITER is 3, but 4 iterations are done"):
        compared({"SOLVER.MAX_ITER": 3})


def test_nothing_has_changed(caplog):
    """Infinite sizes are equal, and so are lists and the tuples that they were."""
    with caplog.at_level("INFO"):
        compared({"OUTPUT_DIR": "elsewhere", "OF.ANOTHER_VERSION": 1})
    assert caplog.messages == [] and flat({"A": {"B": (1, (2,))}}) == {"A.B": [1, [2]]}


def test_other_weights_are_told_to_have_no_effect(caplog):
    with caplog.at_level("INFO"):
        compared({"MODEL.WEIGHTS": "other.pth"})
    told = f"MODEL.WEIGHTS has no effect on a run that is resumed from {PATH}"
    assert caplog.messages == [told]


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"class_names": ["b", "a"]}, "DATASETS.TRAIN has other classes: b, a; its run had a, b"),
        ({"images": 3}, "DATASETS.TRAIN has other images: 3; its run had 4"),
    ],
)
def test_other_data_is_refused(now, told):
    before = {"class_names": ["a", "b"], "images": 4}
    with pytest.raises(CheckpointError) as error:
        compare_data(before, PATH, {**before, **now})
    assert told in str(error.value)
    compare_data(before, PATH, before)
    compare_data({}, PATH, before)  # of an earlier version


def test_the_config_of_a_checkpoint_of_an_earlier_version_is_that_beside_it(caplog):
    asked = []

    def load(file: Path) -> Any:
        asked.append(file)
        return get_cfg()

    with caplog.at_level("INFO"):
        assert saved_config({}, PATH, load) == DEFAULTS
    assert asked == [Path("run") / "config.yaml"]
    assert caplog.messages == [
        f"{PATH} does not hold the config of its run: comparing with run/config.yaml"
    ]
    assert saved_config({"config": {"A": 1}}, PATH, load) == {"A": 1}


def test_a_config_that_is_not_known_is_taken_for_this_one_and_told(caplog):
    def load(file: Path) -> Any:
        raise ConfigError("there is no such file")

    assert saved_config({}, PATH, load) is None
    assert "(there is no such file): going on as if nothing had changed" in caplog.text


@pytest.mark.parametrize("config", ["SEED: 1", [1], {1: 2}])
def test_what_is_no_config_is_refused(config):
    with pytest.raises(CheckpointError, match="'config' must be a dict by key, got"):
        saved_config({"config": config}, PATH, lambda file: get_cfg())
