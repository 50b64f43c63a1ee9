"""report.py: the page and report.json, with hostile names, missing images and nothing to show."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.project import load_script
from helpers.report_example import RESULTS, TRUTH, write_example
from helpers.runs import strict

from onenet.visualization import report_plots

VOID = ("meta", "img", "br", "link", "hr")
HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)> $x_1$ \"'&"


@pytest.fixture(scope="module")
def script():
    return load_script("tools/report.py")


class Page(HTMLParser):
    """Checks that tags close, and gathers them with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def pictures(self) -> list[str]:
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]


def report(script, folder: Path, truth=TRUTH, results=RESULTS, *flags: str):
    """The page and the JSON that the program writes."""
    script.main([*write_example(folder, truth, results), *flags])
    content = strict((folder / "out" / "report.json").read_text(encoding="utf-8"))
    return Page(folder / "out" / "report.html"), content


def test_the_page_and_its_figures(script, tmp_path, capsys):
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"")
    page, content = report(script, tmp_path / "d", TRUTH, RESULTS, "--weights", str(weights))
    assert "The best F1 is 0.667, at a confidence threshold of 0.85" in capsys.readouterr().out
    assert content["best_threshold"] == 0.85 and content["class_names"] == ["cat", "dog"]
    assert content["weights"]["sha256"].startswith("e3b0c44298fc1c14")  # of nothing
    assert [row["best_threshold"] for row in content["classes"]] == [0.88, 0.7]
    assert content["data_set"]["crowd_regions"] == 1 and content["counts"]["missed"] == 2
    assert content["worst_images"][0]["image_id"] == 1 and len(content["ap_by_iou"]) == 10
    # One file that asks for nothing: its two pictures are inside.
    assert len(page.pictures()) == 2
    assert all(src.startswith("data:image/jpeg;base64,") for src in page.pictures())
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        links = [v for k, v in attributes.items() if k in ("src", "href", "xlink:href")]
        assert all(link.startswith(("data:", "#")) for link in links)
    assert "currentColor" in page.text and "prefers-color-scheme: dark" in page.text


def test_names_cannot_leave_their_place(script, tmp_path):
    truth = copy.deepcopy(TRUTH)
    truth["categories"][1]["name"] = HOSTILE
    truth["categories"][0]["name"] = "long " * 60
    truth["images"][0]["file_name"] = 'a"><img src=y onerror=alert(2)>.png'
    page, content = report(script, tmp_path / "d", truth)
    assert content["class_names"] == [HOSTILE, ("long " * 60).strip()]
    assert not any(tag == "script" for tag, _ in page.tags)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert all(src.startswith("data:") for src in page.pictures())
    assert re.search(r"<td>&lt;/td&gt;&lt;script&gt;", page.text)


def test_the_page_is_made_without_the_images(script, tmp_path):
    words = write_example(tmp_path / "d")
    for image in (tmp_path / "d" / "images").iterdir():
        image.unlink()
    script.main(words)
    page = Page(tmp_path / "d" / "out" / "report.html")
    content = json.loads((tmp_path / "d" / "out" / "report.json").read_text())
    missing = content["data_set"]["missing_images"]
    assert [Path(name).name for name in missing] == ["one.png", "two.png"]
    assert "one.png&#39; does not exist" in page.text and not page.pictures()
    assert content["best_threshold"] == 0.85


def test_an_image_of_another_size_is_not_drawn(script, tmp_path):
    words = write_example(tmp_path / "d")
    truth = copy.deepcopy(TRUTH)
    truth["images"][0]["height"] = 90
    (tmp_path / "d" / "truth.json").write_text(json.dumps(truth))
    script.main(words)
    page = Page(tmp_path / "d" / "out" / "report.html")
    assert "one.png has 100 x 100 px, but" in page.text and not page.pictures()


@pytest.mark.parametrize(("objects", "detections"), [(True, False), (False, True), (False, False)])
def test_without_objects_or_detections(script, tmp_path, objects, detections):
    truth = TRUTH if objects else {**TRUTH, "annotations": []}
    results = RESULTS if detections else []
    page, content = report(script, tmp_path / "d", truth, results)
    assert content["best_threshold"] is None
    assert content["ap"] is None if not objects else content["ap"] >= 0
    assert len(content["confusion_matrix"]) == 3 and "nan" not in page.text.replace("nant", "")


def test_one_class(script, tmp_path):
    truth = {**TRUTH, "categories": [{"id": 7, "name": "dog"}]}
    truth["annotations"] = [a for a in TRUTH["annotations"] if a["category_id"] == 7]
    results = [r for r in RESULTS if r["category_id"] == 7]
    page, content = report(script, tmp_path / "d", truth, results)
    assert content["confusion_matrix"] == [[1, 1], [0, 0]]
    assert "objects of 1 class," in page.text and "over all" not in page.text.split("<svg")[1]


def test_many_classes(script, tmp_path, monkeypatch):
    monkeypatch.setattr(report_plots, "MOST_CELLS", 6)
    truth = copy.deepcopy(TRUTH)
    truth["categories"] += [{"id": k, "name": f"class {k}"} for k in range(10, 20)]
    page, content = report(script, tmp_path / "d", truth, RESULTS, "--worst", "0")
    assert len(content["classes"]) == 12 and content["worst_images"] == []
    assert "the 7 classes that are confused least" in page.text
    assert page.text.count("other classes") == 2  # its row and column


def test_scores_that_are_no_probabilities(script, tmp_path):
    results = [{**r, "score": 10 * r["score"]} for r in RESULTS]
    page, content = report(script, tmp_path / "d", TRUTH, results)
    assert content["calibration_error"] is None and content["best_threshold"] == 8.5
    assert "some scores are not from 0 to 1" in page.text


def test_results_of_another_data_set_are_refused(script, tmp_path, capsys):
    words = write_example(tmp_path / "d", TRUTH, [{**RESULTS[0], "image_id": 5}])
    with pytest.raises(SystemExit) as stop:
        script.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "[0]: 'image_id' is 5 (int); must be one of" in error
    assert not (tmp_path / "d" / "out").exists()


def test_the_report_replaces_no_input(script, tmp_path, capsys):
    words = write_example(tmp_path / "d")
    results = tmp_path / "d" / "results.json"
    results.rename(tmp_path / "d" / "report.json")
    words[words.index(str(results))] = str(tmp_path / "d" / "report.json")
    words[-1] = str(tmp_path / "d")
    with pytest.raises(SystemExit):
        script.main(words)
    assert "the output would overwrite the input" in capsys.readouterr().err
