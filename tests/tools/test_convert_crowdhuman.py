"""convert_to_coco.py crowdhuman: values computed by hand, and faulty files."""

from __future__ import annotations

import json

import pytest
from helpers.crowdhuman_example import person, write_odgt
from helpers.label_trees import write_tree
from helpers.project import load_script

from onenet.errors import DatasetError


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/convert_to_coco.py")


@pytest.fixture
def images(tmp_path):
    return write_tree(tmp_path, {"images/b.jpg": (64, 48), "images/c.jpg": (20, 50)}) / "images"


def test_crowdhuman_becomes_coco(tool, images, tmp_path, capsys):
    people = [
        person([-10, 5, 90.5, 60], ignore=0),
        person([1, 2, 3, 4], ignore=1),
        person([5, 6, 7, 8], tag="mask"),
        {"tag": "person", "fbox": [0, 0, 9, 9]},
    ]
    odgt = write_odgt(
        tmp_path / "a.odgt", [{"ID": "c", "gtboxes": []}, {"ID": "b", "gtboxes": people}]
    )
    output = tmp_path / "val.json"
    words = ["--annotations", str(odgt), "--images", str(images), "--output", str(output)]
    tool.main(["crowdhuman", *words])
    content = json.loads(output.read_text())
    assert content["images"] == [
        {"id": 1, "file_name": "c.jpg", "width": 20, "height": 50},
        {"id": 2, "file_name": "b.jpg", "width": 64, "height": 48},
    ]
    assert content["categories"] == [{"id": 1, "name": "person"}]
    rows = [(a["id"], a["image_id"], a["bbox"], a["iscrowd"]) for a in content["annotations"]]
    assert rows == [
        (1, 2, [-10, 5, 90.5, 60], 0),
        (2, 2, [1, 2, 3, 4], 1),
        (3, 2, [5, 6, 7, 8], 1),
        (4, 2, [0, 0, 9, 9], 0),
    ]
    assert content["annotations"][0]["bbox_vis"] == [-10, 5, 90, 60]
    assert content["annotations"][0]["area"] == 90.5 * 60
    summary = capsys.readouterr().out
    assert "2 images, 1 of them without objects; 2 boxes, 2 crowd regions; 1 class: pers" in summary


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON object"),
        ("[1]", r"expected a JSON object with ID and gtboxes, got \[1\]"),
        ('{"gtboxes": []}', "'ID' must be"),
        ('{"ID": "b"}', "'gtboxes' is missing"),
        ('{"ID": "b", "gtboxes": {}}', "'gtboxes' is not a list"),
        ('{"ID": "x", "gtboxes": []}', r"no image .*x\.jpg; is --images the right folder"),
        ('{"ID": "' + 999 * "x" + '", "gtboxes": []}', r"no image .*xxx; is --images the right"),
        ('{"ID": "c", "gtboxes": []}', "'c' is already in line 1"),
        ('{"ID": "b", "gtboxes": [7]}', r"gtboxes\[0\] must be a JSON object, got 7"),
        ('{"ID": "b", "gtboxes": [{"fbox": [1, 2, 3, 4]}]}', r"gtboxes\[0\]: 'tag' must be text"),
        (
            '{"ID": "b", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3]}]}',
            r"gtboxes\[0\]: 'fbox' must be \[x, y, width, height\] in pixels, got \[1, 2, 3\]",
        ),
        ('{"ID": "b", "gtboxes": [{"tag": "person", "fbox": [1, 2, NaN, 3]}]}', "'fbox' must be"),
    ],
)
def test_faults_of_crowdhuman_name_the_line(tool, images, tmp_path, line, message):
    odgt = tmp_path / "a.odgt"
    odgt.write_text('{"ID": "c", "gtboxes": []}\n\n' + line + "\n")
    with pytest.raises(DatasetError, match=rf"a\.odgt:3: .*{message}"):
        tool.read_odgt(odgt, images)


def test_what_cannot_be_converted_leaves_no_file(tool, images, tmp_path, capsys):
    words = ["--images", str(images), "--output", str(tmp_path / "new" / "val.json")]
    (tmp_path / "empty.odgt").write_text("\n")
    for name, message in (("none.odgt", "cannot be read"), ("empty.odgt", "is empty")):
        with pytest.raises(SystemExit) as stop:
            tool.main(["crowdhuman", "--annotations", str(tmp_path / name), *words])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and name in error and message in error
    assert not (tmp_path / "new").exists()


def test_crowdhumans_lines_end_only_with_line_feeds(tool, images, tmp_path):
    """Other characters that Python takes for line ends may be in a text."""
    odgt = tmp_path / "a.odgt"
    records = [{"ID": "c", "gtboxes": [], "note": "\u2028\x85"}, {"ID": "b", "gtboxes": []}]
    lines = "\r\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    odgt.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert [image["file_name"] for image in tool.read_odgt(odgt, images).images] == [
        "c.jpg",
        "b.jpg",
    ]
