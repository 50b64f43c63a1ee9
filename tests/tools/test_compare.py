"""tools/compare.py: runs are done once; costs of detectors; the tables."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
from helpers.project import load_script
from helpers.runs import edit_json, strict, write_config
from torch import nn
from torchvision.ops import deform_conv2d

from onenet.checkpoints.files import save_checkpoint
from onenet.cli import training_parser
from onenet.errors import ConfigError, DatasetError
from onenet.lightning.build import build_detector
from onenet.lightning.config import dump, load_cfg
from onenet.structures import Detections

script = load_script("tools/compare.py")
costs, training_runs = (sys.modules[f"_shared.{n}"] for n in ("detector_costs", "training_runs"))


@pytest.fixture
def commands(monkeypatch):
    """Replaces train_net.py: trained models find everything, other evaluations nothing."""
    given = []

    def play(_, command):
        assert Path(command[1]).is_file()
        given.append(command[2:])
        args = training_parser().parse_args(command[2:])
        cfg = load_cfg(args.config_file, args.opts)
        folder = Path(cfg.OUTPUT_DIR)
        (folder / "inference").mkdir(parents=True)
        (folder / ("inference" if args.eval_only else "") / "config.yaml").write_text(dump(cfg))
        found = []
        if not args.eval_only:
            save_checkpoint(folder / "model_final.pth", {"model": build_detector(cfg).state_dict()})
            truth = json.loads(Path(cfg.DATASETS.TEST[0].split(":")[0]).read_text())
            keys = ("image_id", "category_id", "bbox")
            found = [{**{k: a[k] for k in keys}, "score": 1.0} for a in truth["annotations"]]
        (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
        return 0

    monkeypatch.setattr(training_runs.Children, "call", play)
    return given


def test_a_test_set_without_objects_is_refused_before_training(shapes, tmp_path):
    data = edit_json(shapes, tmp_path / "data", "val", lambda content: content.pop("annotations"))
    with pytest.raises(DatasetError, match="'annotations' is missing"):
        training_runs.dataset_opts(*splits(data))
    data = edit_json(shapes, tmp_path / "other", "val", lambda c: c.update(annotations=[]))
    with pytest.raises(DatasetError, match="instances_val.json has no objects"):
        training_runs.dataset_opts(*splits(data))


def test_metrics_that_are_nan_are_kept_as_null(tmp_path):
    training_runs.write_whole(
        tmp_path / "result.json", training_runs.strict_json({"metrics": {"AP": math.nan}}).encode()
    )
    assert strict((tmp_path / "result.json").read_text()) == {"metrics": {"AP": None}}
    assert math.isnan(training_runs.finished_metrics(tmp_path)["AP"])


@pytest.mark.parametrize("bad", [{"score": None}, {"image_id": "1"}, {"bbox": [1, 2, 3]}])
def test_detections_of_a_run_are_checked(shapes, tmp_path, commands, monkeypatch, bad):
    data = splits(shapes)
    config = write_config(tmp_path, shapes)

    def play(_, command):
        (tmp_path / "run" / "inference").mkdir(parents=True)
        entry = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5} | bad
        file = tmp_path / "run" / "inference" / "coco_instances_results.json"
        file.write_text(json.dumps([entry]))
        return 0

    monkeypatch.setattr(training_runs.Children, "call", play)
    with pytest.raises(DatasetError, match=rf"results.json .*\[0\]: '{next(iter(bad))}'"):
        training_runs.run_once(tmp_path / "run", config, training_runs.dataset_opts(*data))


def splits(shapes):
    return [f"{shapes}/annotations/instances_{s}.json:{shapes}/{s}" for s in ("train", "val")]


TINY = ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2"]


def test_detectors_are_trained_measured_and_tabled_once(
    shapes, tmp_path, monkeypatch, capsys, commands
):
    configs = []
    for name in ("OneNet", "CenterNet"):
        file = write_config(tmp_path / name, shapes, MODEL__META_ARCHITECTURE=name)
        configs.append(file.rename(tmp_path / f"{name.lower()}.yaml"))
    words = [*map(str, configs), "--dataset", *splits(shapes), "--output", str(tmp_path / "out")]
    words += ["--images", "2", "--repeats", "3", "--opts", *TINY]
    monkeypatch.setattr(sys, "argv", ["tools/compare.py", *words])
    script.main(words)

    flags = [sorted({"--resume", "--eval-only"} & set(command)) for command in commands]
    # Trained, with NMS; trained, without peaks, with NMS.
    assert flags == [["--resume"], ["--eval-only"]] + [["--resume"]] + [["--eval-only"]] * 2
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["onenet", "centernet"]
    assert [row["remedy"] for row in content["rows"]] == ["nothing", "3 × 3 peaks"]
    for row in content["rows"]:
        assert row["milliseconds"] > 0 and 0 < row["post_share"] < 100 and row["gflops"] > 0
        assert row["ap"] == row["ap50"] == 100 and row["ap_nms"] == 0
    assert [row["ap_without"] for row in content["rows"]] == [100, 0]
    assert len(content["seconds"]["onenet"]["total"]) == 3
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text.splitlines()[2].startswith("| onenet ") and "tools/compare.py" in text
    assert text.splitlines()[2] in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open(newline="")))
    assert float(rows[1]["ap"]) == content["rows"][1]["ap"]
    assert cv2.imread(str(tmp_path / "out" / "comparison.png")).std() > 10

    done = len(commands)
    script.main(words)
    assert len(commands) == done


@pytest.fixture
def tiny(shapes, tmp_path):
    """``run_once`` of a tiny training in ``tmp_path/run``."""
    file = write_config(tmp_path, shapes)

    def call(*opts, **more):
        return training_runs.run_once(tmp_path / "run", file, [*TINY, *opts], **more)

    return call


def test_a_run_gives_the_metrics_of_its_detections_again(tmp_path, commands, tiny):
    found = tiny()
    assert found["bbox/AP50"] == 100 and len(commands) == 1
    (tmp_path / "run" / "inference" / "coco_instances_results.json").unlink()
    assert tiny() == pytest.approx(found, nan_ok=True) and len(commands) == 1


def test_an_interrupted_run_goes_on(tmp_path, commands, tiny):
    tiny()
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "inference")
    assert tiny()["bbox/AP"] == 100
    assert len(commands) == 2 and "--resume" in commands[1]


def test_another_config_in_the_same_folder_is_refused(commands, tiny):
    tiny()
    with pytest.raises(training_runs.RunError, match="SOLVER.BASE_LR is 0.001, not 0.5"):
        tiny("SOLVER.BASE_LR", "0.5")
    assert len(commands) == 1


def test_another_evaluation_in_the_same_folder_is_refused(commands, tiny):
    evaluation = {"flags": ("--eval-only",)}
    tiny(**evaluation)
    tiny(**evaluation)
    with pytest.raises(training_runs.RunError, match="DETECTIONS_PER_IMAGE is 100, not 5"):
        tiny("TEST.DETECTIONS_PER_IMAGE", "5", **evaluation)
    assert len(commands) == 1


def test_a_run_of_another_version_is_refused(tmp_path, tiny):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("MODEL: {OLD: 1}\n")
    with pytest.raises(training_runs.RunError, match="another engine or version"):
        tiny()


def test_infinite_sizes_do_not_make_a_config_another(shapes, tmp_path):
    config = write_config(tmp_path, shapes)
    cfg = load_cfg(config)
    (tmp_path / "config.yaml").write_text(dump(cfg))
    assert ".inf" in (tmp_path / "config.yaml").read_text()
    training_runs.check_same_config(tmp_path, cfg, load_cfg)
    other = load_cfg(config, ["SEED", "12"])
    with pytest.raises(training_runs.RunError, match="holds another run: its SEED is"):
        training_runs.check_same_config(tmp_path, other, load_cfg)


def test_a_failed_run_is_told_and_not_kept(tmp_path, monkeypatch, tiny):
    failing = SimpleNamespace(call=lambda command: 3)
    monkeypatch.setattr(training_runs, "Children", lambda: failing)
    with pytest.raises(training_runs.RunError, match="exit code 3"):
        tiny()
    assert not (tmp_path / "run" / "result.json").exists()


# What detectors do against duplicates.


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("OneNet", "nothing"),
        ("SparseRCNN", "nothing"),
        ("CenterNet", "3 × 3 peaks"),
        ("torchvision.SSD300", "NMS"),
    ],
)
def test_remedies(name, remedy):
    cfg = SimpleNamespace(MODEL=SimpleNamespace(META_ARCHITECTURE=name))
    assert script.duplicates_of(cfg).remedy == remedy


def test_an_unknown_detector_is_refused():
    cfg = SimpleNamespace(MODEL=SimpleNamespace(META_ARCHITECTURE="Mine"))
    with pytest.raises(ConfigError, match="Mine.*DUPLICATES"):
        script.duplicates_of(cfg)


def test_configs_of_one_name_are_refused(tmp_path, shapes, capsys):
    words = ["a/x.yaml", "b/x.yaml", "--dataset", *splits(shapes), "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        script.main(words)
    assert stop.value.code == 2 and "different file names" in capsys.readouterr().err


# Costs.


class Detector(nn.Module):
    """A convolution, or a deformable one, that stands in for a detector."""

    def __init__(self, deformable: bool) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.deformable = deformable

    def forward(self, images):
        x = torch.stack(images).float()
        out = self.head(x)
        if self.deformable:
            out = out + deform_conv2d(x, out.new_zeros(1, 18, 16, 20), self.head.weight, padding=1)
        scores = out.mean(dim=(1, 2))[0]
        return [Detections(scores[:, None].expand(-1, 4), scores, scores.long())]


def candidate(deformable=False):
    image = torch.zeros(3, 16, 20, dtype=torch.uint8)
    return costs.Candidate(model=Detector(deformable), pixels=[image], parameters=216)


def test_multiply_adds_by_hand():
    """8 · 16 · 20 values of 3 · 9 products each, twice with the deformable convolution."""
    assert costs.gflops(candidate()) == pytest.approx(69120e-9)
    assert costs.gflops(candidate(deformable=True)) == pytest.approx(2 * 69120e-9)


def test_time_is_split_where_the_last_layer_ends():
    device = torch.device("cpu")
    found = costs.time_all({"a": candidate(), "b": candidate()}, repeats=4, device=device)
    assert set(found) == {"a", "b"} and set(found["a"]) == {"network", costs.POST, "total"}
    assert all(len(timings) == 4 for timings in found["b"].values())


def test_every_detector_sees_the_same_images_in_turn():
    seen = []

    class Seeing(Detector):
        def forward(self, images):
            seen.append(images[0][0, 0, 0].item())
            return super().forward(images)

    images = [torch.full((3, 16, 20), i, dtype=torch.uint8) for i in range(2)]
    both = {n: costs.Candidate(Seeing(False), images, 0) for n in "ab"}
    costs.time_all(both, repeats=3, device=torch.device("cpu"))
    # Three warm-up runs each, then in turn.
    assert seen == [0, 1, 0] * 2 + [1, 1, 0, 0, 1, 1]


def test_the_second_stage_ends_with_its_box_predictor():
    model = nn.Module()
    model.roi_heads = nn.Module()
    model.roi_heads.box_predictor = nn.Identity()
    last = costs.Candidate(model, [], 0).last_layer
    assert last is model.roi_heads.box_predictor


@pytest.mark.parametrize("words", [("--repeats", "0"), ("--num-gpus", "all")])
def test_counts_are_whole_numbers(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stop:
        script.main(["c.yaml", "--dataset", "a", "b", "--output", str(tmp_path), *words])
    assert stop.value.code == 2
    assert f"{words[0]}: must be a whole number of at least 1" in capsys.readouterr().err
