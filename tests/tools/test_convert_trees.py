"""convert_to_coco.py: folders within folders, and files that it leaves out or cannot read."""

from __future__ import annotations

import os
import unicodedata

import pytest
from helpers.label_trees import convert, objects, refusal, voc_file, voc_object, write_tree

YAML = "names: [cat, dog]\n"
WHOLE = "1 0.5 0.5 1 1\n"  # YOLO: a dog that fills its image
DOG = ("dog", [0, 0, 40, 30])
FILES = {"yolo": (".txt", WHOLE), "voc": (".xml", voc_file(voc_object("dog", 1, 1, 40, 30)))}
both = pytest.mark.parametrize("format", FILES)


def tree(folder, format, *names, **more):
    """A data set with an image and a label of a dog for each name."""
    suffix, text = FILES[format]
    files = {f"images/{name}.png": (40, 30) for name in names}
    files |= {f"labels/{name}{suffix}": text for name in names}
    return write_tree(folder, {"data.yaml": YAML, **files, **more})


def fails(capsys, format, folder, *words):
    """The line with which a conversion ends; nothing is left of the output."""
    line = refusal(capsys, format, folder, *words)
    assert not (folder / "out").exists() and not list(folder.rglob("*partial*"))
    return line


@both
def test_folders_within_folders(tmp_path, capsys, format):
    content = convert(format, tree(tmp_path, format, "a", "s/b", "s/t/a"))
    assert objects(content) == {"a.png": [DOG], "s/b.png": [DOG], "s/t/a.png": [DOG]}
    assert "left out" not in capsys.readouterr().err


@both
def test_a_label_in_another_folder_than_its_image(tmp_path, capsys, format):
    folder = tree(tmp_path, format, "a", "s/b")
    os.rename(folder / "images/s/b.png", folder / "images/b.png")
    error = fails(capsys, format, folder)
    suffix = FILES[format][0]
    assert f"no image for s/b{suffix}" in error and "same sub-folder" in error


@both
def test_an_image_with_an_ending_that_is_not_read(tmp_path, capsys, format):
    folder = tree(tmp_path, format, "a", "s/b")
    os.rename(folder / "images/s/b.png", folder / "images/s/b.dng")
    error = fails(capsys, format, folder)
    assert "endings .jpg .jpeg" in error and error.endswith("; s/b.dng has another")


@both
def test_a_linked_folder_is_read_once(tmp_path, capsys, format):
    folder = tree(tmp_path, format, "a", **{"elsewhere/x.png": (40, 30)})
    for part in ("images", "labels"):
        (folder / part / "loop").symlink_to(folder / part)
    (folder / "images/linked").symlink_to(folder / "elsewhere")
    write_tree(folder, {f"labels/linked/x{FILES[format][0]}": FILES[format][1]})
    assert objects(convert(format, folder)) == {"a.png": [DOG], "linked/x.png": [DOG]}
    assert "labels/loop" in capsys.readouterr().err


@both
def test_a_folder_that_cannot_be_read(tmp_path, capsys, monkeypatch, format):
    folder = tree(tmp_path, format, "a", "s/b")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("labels/s"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)  # root may read every folder
    assert "labels/s cannot be read: Permission denied" in fails(capsys, format, folder)


@pytest.mark.parametrize(
    "suffix", [".jpg", ".JPG", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".gif", ".ppm", ".pgm"]
)
def test_images_without_objects_may_have_every_ending(tmp_path, capsys, suffix):
    folder = tree(tmp_path, "yolo", "a", **{f"images/empty{suffix}": (9, 9)})
    assert objects(convert("yolo", folder)) == {"a.png": [DOG], f"empty{suffix}": []}
    assert (
        f"1 image has no label file, which means no objects: empty{suffix}"
        in capsys.readouterr().err
    )


@both
def test_what_is_left_out_is_counted_and_named(tmp_path, capsys, format):
    suffix = FILES[format][0]
    more = {
        f"labels/._a{suffix}": b"\0\5\26\7",
        f"labels/__MACOSX/a{suffix}": b"\0\5\26\7",
        "images/._a.png": b"\0\5\26\7",
        "labels/notes.json": "{}",
        "images/clip.mp4": b"",
        "images/s/Thumbs.db": b"",
    }
    assert objects(convert(format, tree(tmp_path, format, "a", **more))) == {"a.png": [DOG]}
    told = capsys.readouterr().err
    images, labels = tmp_path / "images", tmp_path / "labels"
    assert (
        f"note: left out 2 files in {labels} that macOS adds: ._a{suffix}, __MACOSX/a{suffix}"
        in told
    )
    assert f"1 file in {images} that macOS adds: ._a.png" in told
    assert f"1 file in {labels}, not {suffix}: notes.json" in told
    assert f"2 files in {images}, not images: clip.mp4, s/Thumbs.db" in told


@both
def test_labels_beside_their_images(tmp_path, capsys, format):
    folder = tree(tmp_path, format, "a", "s/b")
    words = ["--annotations", folder / "both", "--images", folder / "both"]
    for part in ("images", "labels"):
        for path in (folder / part).rglob("*.*"):
            new = folder / "both" / path.relative_to(folder / part)
            new.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, new)
    assert objects(convert(format, folder, *words)) == {"a.png": [DOG], "s/b.png": [DOG]}
    assert "left out" not in capsys.readouterr().err


@both
def test_an_image_and_its_label_may_spell_an_accent_in_two_ways(tmp_path, format):
    folder = tree(tmp_path, format, "a")
    suffix = FILES[format][0]
    composed, split = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    os.rename(folder / "images/a.png", folder / f"images/{split}.png")
    os.rename(folder / f"labels/a{suffix}", folder / f"labels/{composed}{suffix}")
    assert objects(convert(format, folder)) == {f"{split}.png": [DOG]}


@both
@pytest.mark.parametrize("part", ["images", "labels"])
def test_two_files_for_one(tmp_path, capsys, format, part):
    suffix = FILES[format][0]
    other = {"images": {"images/s/a.jpg": (9, 9)}, "labels": {f"labels/s/a{suffix.upper()}": ""}}
    folder = tree(tmp_path, format, "s/a", **other[part])
    error = fails(capsys, format, folder)
    names = {
        "images": "s/a.jpg and s/a.png are two images",
        "labels": f"s/a{suffix.upper()} and s/a{suffix} are two label files",
    }
    assert names[part] in error


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
BROKEN = {
    "png-header": PNG + b"\0\0",
    "png-400-megapixels": PNG + b"\0\0\x4e\x20" * 2 + b"\x08\2\0\0\0\0\0\0\0",
    "no-image": b"<html>",
    "empty": b"",
}


@both
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_an_image_that_cannot_be_read(tmp_path, capsys, format, content):
    folder = tree(tmp_path, format, "a", "s/b", **{"images/s/b.png": content})
    assert "s/b.png' cannot be read: " in fails(capsys, format, folder)


@both
def test_a_label_that_is_no_text(tmp_path, capsys, format):
    suffix = FILES[format][0]
    folder = tree(tmp_path, format, "a", "s/b", **{f"labels/s/b{suffix}": b"\x80\xff"})
    assert f"labels/s/b{suffix}" in fails(capsys, format, folder)


@both
def test_what_cannot_be_written_leaves_nothing(tmp_path, capsys, format):
    folder = tree(tmp_path, format, "a")
    write_tree(tmp_path, {"file": ""})
    with pytest.raises(SystemExit) as stop:
        convert(format, folder, "--output", tmp_path / "file" / "coco.json")
    assert stop.value.code == 1 and "could not be written" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*partial*"))


@both
@pytest.mark.parametrize("name", ["coco", "labels/a.txt", "images/a.png", "coco.json.bak"])
def test_an_output_that_training_could_not_read_replaces_nothing(tmp_path, capsys, format, name):
    folder = tree(tmp_path, format, "a", **{"labels/a.txt": WHOLE})
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    error = fails(capsys, format, folder, "--output", folder / name)
    assert "must end in .json" in error or "would overwrite the input" in error
    assert before == {path: path.read_bytes() for path in folder.rglob("*.*")}


def test_an_output_that_is_an_input(tmp_path, capsys):
    folder = tree(tmp_path, "yolo", "a", **{"names.json": "cat\ndog\n"})
    names = folder / "names.json"
    error = fails(capsys, "yolo", folder, "--classes", names, "--output", names)
    assert f"would overwrite the input {names}" in error
    assert names.read_text() == "cat\ndog\n"
