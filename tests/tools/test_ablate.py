"""tools/ablate.py: what a spec may contain, and the grid it gives."""

from __future__ import annotations

import shutil

import pytest
from helpers.ablate_example import command, script, write_spec
from helpers.configs import ROOT, flat

from onenet.errors import ConfigError
from onenet.lightning.config import load_cfg

SPECS = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))
OFF = {"MODEL.OneNet.CLASS_COST": 0.0}


def error(capsys, words):
    with pytest.raises(SystemExit) as stop:
        script.main(words)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
    return told


WRONG = [
    ({"axis": {}}, "unknown key axis; known are title, config"),
    ({"axes": None}, "axes is missing"),
    ({"axes": {}}, "axes is {}; expected at least one axis"),
    ({"axes": {"a": {}}}, "axes.a is {}; expected labels with overrides"),
    ({"axes": {"a": {"x": 3}}}, "axes.a.x is 3; expected overrides"),
    ({"axes": {"a": {"x": {"MODEL": {"MASK_ON": 1}}}}}, "axes.a.x.MODEL is {'MASK_ON': 1}"),
    ({"axes": {"a": {"x_y": OFF, "x-y": {}}}}, "expected labels that differ in letters or digits"),
    ({"axes": {"a": {"x": {"SEED": 1}}}}, "axes.a.x sets SEED, which the program sets itself: --s"),
    ({"axes": {"a": {"x": OFF}, "b": {"y": OFF}}}, "the axes a and b both set"),
    ({"axes": {"a": {"x": {"scale": {"SOLVER.MAX_ITER": 0}}}}}, "expected a number above 0"),
    ({"evaluate": {"e": {"x": {"SOLVER.BASE_LR": 1.0}}}}, "evaluate.e sets SOLVER.BASE_LR"),
    ({"evaluate": {"class cost": {"x": {}}}}, "class cost is in axes and in evaluate"),
    ({"rows": [{"class cost": "high"}]}, "rows, part 1, class cost is 'high'; expected one of off"),
    ({"rows": [{"cost": "on"}]}, "part 1, cost is 'on'; expected one of class cost"),
    ({"seeds": [1, 1]}, "seeds is [1, 1]; expected different whole numbers"),
    ({"plot": ["mAP"]}, "plot is ['mAP']; expected a list of some of AP, AP50"),
    ({"plot": ["images/s"]}, "plot is ['images/s']"),  # is not measured
    ({"plot": ["positives an object"]}, "plot is ['positives an object']"),  # nor this
    ({"positives": "yes"}, "positives is 'yes'; expected true or false"),
    ({"opts": {"scale": {"SOLVER.MAX_ITER": 2}}}, "opts.scale"),
]


@pytest.mark.parametrize(("changes", "told"), WRONG, ids=[told for _, told in WRONG])
def test_what_a_spec_must_not_say(tmp_path, changes, told):
    path = write_spec(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        script.read_spec(path)
    assert str(path) in str(caught.value) and told in str(caught.value)


def test_labels_that_yaml_takes_for_truth_values(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("config: a.yaml\naxes: {cost: {off: {}, on: {}}}\n")
    with pytest.raises(ConfigError, match="YAML reads as False; write labels such as .* in quotes"):
        script.read_spec(path)


REFUSED = [
    ({"axes": {"a": {"x": {"MODEL.OneNet.CLAS_COST": 1}}}}, "nearest known key is MODEL.OneNet.CL"),
    ({"axes": {"a": {"x": {"MODEL.OneNet.MATCHER": "max"}}}}, "MODEL.OneNet.MATCHER"),
    ({"axes": {"a": {"x": {"SOLVER.MAX_ITER": "many"}}}}, "expected a whole number"),
    ({"axes": {"a": {"x": {"scale": {"SOLVER.OPTIMIZER": 2}}}}}, "a key whose value is a number"),
    ({"evaluate": {"e": {"x": {"MODEL.OneNet.INFERENCE_HEADS": 9}}}}, "INFERENCE_HEADS"),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_an_override_that_the_config_refuses_is_told_before_any_training(
    shapes, tmp_path, capsys, changes, told
):
    found = error(capsys, command(shapes, tmp_path, **changes))
    assert f"{tmp_path}/study.yaml: " in found and told in found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "told"),
    [("MODEL.OneNet.CLASS_COST", "class cost of"), ("SEED", "--seeds"), ("NO.KEY", "unknown key")],
)
def test_opts_that_are_wrong_for_all(shapes, tmp_path, capsys, key, told):
    found = error(capsys, command(shapes, tmp_path, "--opts", key, "1"))
    assert key in found and told in found


def plan(shapes, tmp_path, *flags, **changes):
    args = script.build_parser().parse_args(command(shapes, tmp_path, *flags, **changes))
    return script.make_plan(args, script.read_spec(tmp_path / "study.yaml"))


def values(training, *keys):
    """Values of keys in the config of a training."""
    cfg = dict(flat(load_cfg(training.folder.parents[3] / "tiny.yaml", training.opts)))
    return [cfg[key] for key in keys]


def test_a_grid_of_parts(shapes, tmp_path):
    """A spec with three of 2 × 2 points, one of them in two parts."""
    axes = {
        "cost": {"off": {"MODEL.OneNet.CLASS_COST": 0}, "on": {"MODEL.OneNet.CLASS_COST": 3}},
        "rate": {"low": {"SOLVER.BASE_LR": "1e-4"}, "high": {}},
    }
    rows = [{"cost": "on"}, {"rate": ["low"]}]
    made = plan(shapes, tmp_path, "--opts", "SOLVER.BASE_LR", "0.5", axes=axes, rows=rows)
    grid = made.trainings([5, 6])
    assert list(grid) == [("on", "low"), ("on", "high"), ("off", "low")]
    assert [list(by_seed) for by_seed in grid.values()] == [[5, 6]] * 3
    folders = {t.folder for by_seed in grid.values() for t in by_seed.values()}
    assert len(folders) == 6 and tmp_path / "out" / "study" / "off_low" / "seed5" in folders
    keys = ("MODEL.OneNet.CLASS_COST", "SOLVER.BASE_LR", "SEED", "MODEL.OneNet.NUM_CLASSES")
    assert values(grid["on", "low"][5], *keys) == [3.0, 1e-4, 5, 6]
    assert values(grid["on", "high"][6], *keys) == [3.0, 0.5, 6, 6]


def test_scales_are_of_the_users_values(shapes, tmp_path):
    scale = {"SOLVER.MAX_ITER": 3, "SOLVER.STEPS": 1.5, "SOLVER.BASE_LR": 0.5}
    axes = {"schedule": {"1x": {}, "3x": {"scale": scale}}}
    opts = ("--opts", "SOLVER.MAX_ITER", "10", "SOLVER.STEPS", "(5,8)")
    grid = plan(shapes, tmp_path, *opts, axes=axes).trainings([1])
    keys = ("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.BASE_LR")
    assert values(grid["1x",][1], *keys) == [10, (5, 8), 1e-3]
    assert values(grid["3x",][1], *keys) == [30, (8, 12), 5e-4]
    assert [grid[label,][1].iterations for label in ("1x", "3x")] == [10, 30]


def test_evaluations_of_a_model_are_without_and_with_nms(shapes, tmp_path):
    sizes = {str(px): {"INPUT.MIN_SIZE_TEST": px} for px in (32, 64)}
    grid = plan(shapes, tmp_path, evaluate={"test size": sizes}).trainings([1])
    training = grid["off",][1]
    names = {
        labels: [one.folder.relative_to(training.folder).as_posix() for one in pair]
        for labels, pair in training.evaluations.items()
    }
    # The training's own evaluation is at 64 px.
    assert names == {("32",): ["eval_32", "eval_32_nms"], ("64",): [".", "eval_64_nms"]}
    without, nms = training.evaluations["32",]
    for one, expected in ((without, False), (nms, True)):
        cfg = load_cfg(tmp_path / "tiny.yaml", one.opts)
        assert cfg.MODEL.OneNet.NMS is expected and cfg.INPUT.MIN_SIZE_TEST == 32
        assert cfg.MODEL.WEIGHTS == str(training.folder / "model_final.pth")
    assert not load_cfg(tmp_path / "tiny.yaml", training.opts).MODEL.OneNet.NMS


def test_another_config_in_a_folder_is_refused_before_any_training(shapes, tmp_path, capsys):
    words = command(shapes, tmp_path)
    folder = tmp_path / "out" / "study" / "on" / "seed1"
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "tiny.yaml", folder / "config.yaml")
    assert f"{folder} holds another run: its " in error(capsys, words)


def test_a_dry_run_lists_the_trainings(shapes, tmp_path, capsys):
    script.main(command(shapes, tmp_path, "--dry-run", "--seeds", "2", "3"))
    lines = capsys.readouterr().out.splitlines()
    assert "4 trainings, 0 of them done" in lines[0]
    assert lines[1] == f"  off, seed 2: 1 iterations, {tmp_path}/out/study/off/seed2"
    assert len(lines) == 5 and not (tmp_path / "out").exists()


def test_positives_of_a_model_that_assigns_nothing(shapes, tmp_path, capsys):
    axes = {"model": {"rival": {"MODEL.META_ARCHITECTURE": "CenterNet"}}}
    found = error(capsys, command(shapes, tmp_path, axes=axes, positives=True))
    assert "study.yaml: positives is true, but rival: " in found and "expected 'OneNet'" in found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_shipped_specs(shapes, tmp_path, path):
    """The shipped specs work on another data set with a small budget and a small config."""
    sets = [f"{shapes}/annotations/instances_{s}.json:{shapes}/{s}" for s in ("train", "val")]
    small = str(ROOT / "projects" / "OneNet" / "configs" / "onenet.res18.nodcn.yaml")
    words = [str(path), "--dataset", *sets, "--output", str(tmp_path), "--engine", "lightning"]
    words += ["--opts", "SOLVER.MAX_ITER", "60", "SOLVER.STEPS", "(50,)"]
    args = script.build_parser().parse_args([*words[:-5], "--config", small, *words[-5:]])
    spec = script.read_spec(path)
    assert spec.config.is_file() and len(spec.rows) > 2
    rows = len(script.make_plan(args, spec).trainings([1]))
    assert rows == {"multi_head": 4}.get(path.stem, len(spec.rows))
