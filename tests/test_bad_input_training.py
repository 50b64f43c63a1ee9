"""What train_net.py does with bad data sets, weights and folders, on both engines."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers.runs import edit_json, load, metrics, refused, trained, write_config

from onenet.checkpoints.files import save_checkpoint

Content = dict[str, Any]


def keep_first(content: Content) -> None:
    image = next(i["id"] for i in content["images"] if _objects(content, i["id"]))
    content["images"] = [i for i in content["images"] if i["id"] == image]
    content["annotations"] = _objects(content, image)


def _objects(content: Content, image: int) -> list[Content]:
    return [a for a in content["annotations"] if a["image_id"] == image]


def crowds(content: Content) -> None:
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def no_objects(content: Content) -> None:
    content["annotations"] = []


def many(content: Content) -> None:
    """Give every image more objects than its 16 x 16 samples."""
    some = content["annotations"][0]
    content["annotations"] = [
        {**some, "id": number, "image_id": image["id"], "bbox": [number % 40, number % 37, 9, 8]}
        for number, image in enumerate(content["images"] * 300, start=1)
    ]


def boxes(*bad: list[float]) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        for image in content["images"]:
            some = _objects(content, image["id"])[:1] or content["annotations"][:1]
            for box in bad:
                number = len(content["annotations"]) + 1
                content["annotations"].append(
                    {**copy.deepcopy(some[0]), "id": number, "image_id": image["id"], "bbox": box}
                )

    return change


def strange_class_names(content: Content) -> None:
    for category, name in zip(
        content["categories"], ["猫", "a|b", "$x", "_y", "<b>", "né 1"], strict=True
    ):
        category["name"] = name


# The change of the training set, and the expected warning, if any.
TAKEN: dict[str, tuple[Callable[[Content], None], str]] = {
    "one-image": (keep_first, ""),
    "only-crowds": (crowds, ""),
    "no-objects": (no_objects, ""),
    "more-targets-than-samples": (many, ""),
    "zero-area-boxes": (boxes([1, 1, 0, 5], [1, 1, 5, 0]), "without a finite, positive size (24)"),
    "x2-less-than-x1": (boxes([9, 9, -4, 5]), "without a finite, positive size (12)"),
    "nan-boxes": (boxes([math.nan, 1, 4, 5]), "without a finite, positive size (12)"),
    "infinite-boxes": (boxes([1, 1, math.inf, 5]), "without a finite, positive size (12)"),
    "boxes-outside": (boxes([70, 1, 4, 5], [-9, -9, 4, 4]), "wholly outside their image (24)"),
    "boxes-beyond": (boxes([-5, -5, 90, 90]), ""),
    "strange-class-names": (strange_class_names, ""),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_trained_on(shapes, tmp_path, capsys, engine, kind):
    change, warning = TAKEN[kind]
    data = edit_json(shapes, tmp_path / "data", "train", change)
    config = write_config(
        tmp_path, data, DATALOADER__FILTER_EMPTY_ANNOTATIONS=False, DATASETS__TEST=[],
        SOLVER__MAX_ITER=1, MODEL__RESNETS__NORM="FrozenBN",
    )  # fmt: skip
    engine(config)
    (line,) = metrics(tmp_path / "run")
    assert math.isfinite(line["total_loss"]) and line["loss_ce"] > 0
    assert (line["loss_bbox"] > 0) == (kind not in ("only-crowds", "no-objects"))
    out = capsys.readouterr().out
    assert ("left out: boxes" in out) == bool(warning) and warning in out


@pytest.mark.parametrize("change", [crowds, no_objects])
def test_nothing_is_left_to_train_on(shapes, tmp_path, capsys, engine, change):
    data = edit_json(shapes, tmp_path / "data", "train", change)
    error = refused(engine, capsys, write_config(tmp_path, data))
    assert "no image with an object" in error and "instances_train.json" in error


def test_names_with_spaces_and_other_alphabets(shapes, tmp_path, engine):
    def rename(content: Content) -> None:
        for image in content["images"]:
            image["file_name"] = f"Ä {image['id']} 鳥 $%.jpg"

    data = edit_json(shapes, tmp_path / "drei Vögel", "train", rename)
    data = edit_json(data, tmp_path / "meine Bilder 鳥", "val", rename)
    for image in [*(data / "train").iterdir(), *(data / "val").iterdir()]:
        image.rename(image.with_name(f"Ä {int(image.stem)} 鳥 $%.jpg"))
    engine(write_config(tmp_path, data, SOLVER__MAX_ITER=1))
    results = tmp_path / "run" / "inference" / "coco_instances_results.json"
    assert json.loads(results.read_text())


def bad_size(content: Content) -> None:
    for image in content["images"]:
        image["width"] += 1


def strange_box(content: Content) -> None:
    content["annotations"][0]["bbox"] = "all of it"


def leave(content: Content) -> None:
    content["images"][0]["file_name"] = "../other.jpg"


# The change of the training set, and the expected error.
REFUSED: dict[str, tuple[Callable[[Content], None], str]] = {
    "size-unlike-the-file": (bad_size, ".jpg"),
    "bad-entry": (strange_box, "annotations[0] (id 1): 'bbox' must be [x, y, width, height]"),
    "leaves-the-folder": (leave, "leaves the image folder"),
    "no-categories": (lambda content: content["categories"].clear(), "'categories' is empty"),
    "other-number-of-classes": (
        lambda content: content["categories"].append({"id": 99, "name": "more"}),
        "has 7 classes (circle, ring, ",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(shapes, tmp_path, capsys, engine, kind):
    change, told = REFUSED[kind]
    data = edit_json(shapes, tmp_path / "data", "train", change)
    assert told in refused(engine, capsys, write_config(tmp_path, data, DATASETS__TEST=[]))


def truncated(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def imagenet(path: Path) -> None:
    save_checkpoint(path, torchvision.models.resnet34(weights=None).state_dict())


# A weights file, and the expected error.
WEIGHTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "there is no such file"),
    "folder": (lambda path: path.mkdir(), "there is no such file"),
    "empty": (lambda path: path.touch(), "cannot be read as a checkpoint"),
    "no-checkpoint": (lambda path: path.write_text("<html>404"), "cannot be read as a checkpoint"),
    "truncated": (truncated, "cannot be read as a checkpoint; it may be cut short"),
    "no-state-dict": (lambda path: torch.save([1, 2], path), "holds no state dict"),
    "other-architecture": (
        lambda path: save_checkpoint(path, {"model": {"head.a": torch.zeros(1)}}),
        "does not fit the model. Does the config belong to the checkpoint",
    ),
    "other-backbone": (imagenet, "does not fit the model. Does the config belong"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_refused(shapes, tmp_path, capsys, engine, kind):
    make, told = WEIGHTS[kind]
    make(tmp_path / "m.pth")
    config = write_config(tmp_path, shapes, MODEL__WEIGHTS=str(tmp_path / "m.pth"))
    error = refused(engine, capsys, config)
    assert told in error and "m.pth" in error


def test_weights_of_another_number_of_classes(shapes, tmp_path, capsys, engine):
    """Fine-tuning keeps all but the class layer; evaluation says which number to set."""
    _, weights = trained(tmp_path / "six", shapes)

    def one_class(content: Content) -> None:
        content["categories"] = content["categories"][:1]
        for annotation in content["annotations"]:
            annotation["category_id"] = content["categories"][0]["id"]

    data = edit_json(shapes, tmp_path / "train", "train", one_class)
    data = edit_json(data, tmp_path / "both", "val", one_class)
    config = write_config(
        tmp_path, data, MODEL__WEIGHTS=str(weights), MODEL__OneNet__NUM_CLASSES=1,
        SOLVER__MAX_ITER=1, SOLVER__BASE_LR=1e-9, SOLVER__WARMUP_ITERS=0, DATASETS__TEST=[],
    )  # fmt: skip
    engine(config)
    out = capsys.readouterr().out
    assert "was trained on another number of classes: the class layer keeps its init" in out
    new, old = (load(p)["model"] for p in (tmp_path / "run" / "model_final.pth", weights))
    assert new["head.cls_score.weight"].shape[0] == 1
    assert torch.allclose(new["head.feat1.weight"], old["head.feat1.weight"], atol=1e-5)
    name = f"{data}/annotations/instances_val.json:{data}/val"
    error = refused(engine, capsys, config, "--eval-only", "DATASETS.TEST", f"({name!r},)")
    assert "trained on another number of classes: set MODEL.OneNet.NUM_CLASSES to match" in error


@pytest.mark.parametrize("folder", ["/dev/null/run", "/proc/run", "{tmp}/file"])
def test_an_output_folder_that_cannot_be_written(shapes, tmp_path, capsys, engine, folder):
    (tmp_path / "file").touch()
    folder = folder.format(tmp=tmp_path)
    error = refused(engine, capsys, write_config(tmp_path, shapes), "OUTPUT_DIR", folder)
    assert f"OUTPUT_DIR {folder} cannot be written" in error


def test_traceback_is_shown_where_it_is_asked_for(shapes, tmp_path, capsys, engine):
    config = write_config(tmp_path, shapes, MODEL__WEIGHTS=str(tmp_path / "gone.pth"))
    with pytest.raises(SystemExit) as stop:
        engine(config, "--traceback")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback (most recent call last)" in error
    assert error.splitlines()[-1].startswith("error: MODEL.WEIGHTS")
