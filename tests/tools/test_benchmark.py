"""benchmark.py: the order in which it times candidates, what it prints and what it writes."""

from __future__ import annotations

import gc
import json

import cv2
import pytest
import torch
from helpers.configs import BASELINES, QUICK
from helpers.runs import unchanged_process, write_config

from onenet.errors import OneNetError

CPU = torch.device("cpu")
CENTERNET = BASELINES / "centernet.res18.nodcn.yaml"
pytestmark = pytest.mark.usefixtures("tools")


def test_candidates_run_in_turn_and_warm_up_apart_without_garbage_collection():
    from _shared.timing import alternate

    order = []
    candidates = {
        name: lambda watch, name=name: order.append((name, gc.isenabled())) for name in "abc"
    }
    timings = alternate(candidates, repeats=3, warmup=2, device=CPU)
    assert "".join(name for name, _ in order) == "aabbcc" + "abc" * 3
    assert not any(enabled for _, enabled in order[6:]) and gc.isenabled()
    assert {name: len(of["total"]) for name, of in timings.items()} == dict.fromkeys("abc", 3)


def test_the_collector_is_on_again_after_an_error():
    from _shared.timing import alternate

    with pytest.raises(ZeroDivisionError):
        alternate({"a": lambda watch: 1 / 0}, repeats=1, warmup=0, device=CPU)
    assert gc.isenabled()


def test_stages_end_where_modules_begin_and_end_and_add_up(monkeypatch):
    from _shared import timing

    clock = iter([0.0, 1.0, 3.0, 7.0, 8.0, 15.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    module = torch.nn.Identity()
    watch = timing.Stopwatch(CPU)
    with timing.stages_of(watch, before={"before": module}, after={"module": module}):
        module(1)
        module(2)
    assert watch.seconds() == {"before": 1 + 4, "module": 2 + 1, "total": 15.0}
    module(3)  # the hooks are gone, or the clock would have ended


def test_medians_and_factors():
    from _shared.timing import Comparison

    timings = {"slow": {"load": [1.0], "total": [9.0, 1.0, 8.0]}, "fast": {"total": [2.0, 6.0]}}
    comparison = Comparison(title="", timings=timings, baseline="slow")
    assert (comparison.seconds("slow"), comparison.seconds("fast")) == (8.0, 4.0)
    assert comparison.speedup("fast") == 2.0 and comparison.stages == ["load"]


def test_table_shows_stages_factors_and_facts():
    from _shared.timing import Comparison
    from benchmarks.report import table

    text = table(
        Comparison(
            title="a title",
            timings={"a": {"load": [0.5], "total": [2.0]}, "b": {"total": [0.016]}},
            baseline="a",
            images=4,
            facts={"b": {"AP": "31.0"}},
            notes=["a note"],
        )
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[2] == ["", "ms", "load", "images/s", "× a", "AP"]
    assert rows[4:6] == [
        ["a", "2000", "500", "2", "1.00", ""],
        ["b", "16", "", "250", "125.00", "31.0"],
    ]
    assert text.startswith("a title\n") and text.endswith("\na note")


class Event:
    """An event on a CUDA stream where each event comes one second after the one before."""

    count = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.count += 1
        self.at = Event.count

    def elapsed_time(self, end: Event) -> float:
        return 1000.0 * (end.at - self.at)


def test_on_cuda_stages_are_timed_by_events_read_once_the_device_is_done(monkeypatch):
    from _shared.timing import alternate

    order = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append(Event.count))
    found = alternate(
        {"a": lambda watch: [watch("x"), watch("y"), watch("x")]},
        repeats=1,
        warmup=0,
        device=torch.device("cuda"),
    )
    assert found == {"a": {"x": [2.0], "y": [1.0], "total": [4.0]}}
    assert order == [0, 5]  # before the first event, and after the last


def test_slope_is_the_exponent_of_a_power_law():
    from benchmarks.growth import slope

    x = [1, 2, 5, 10]
    assert slope(x, [3 * v**1.5 for v in x]) == pytest.approx(1.5)


@pytest.fixture(scope="module")
def output(tmp_path_factory, shapes, tools):
    """The output folder of a run of the parts on a tiny detector."""
    import benchmark
    from benchmarks import criterion, growth, report

    draw, drawn = report.draw, set()

    def draw_once(comparisons, path):  # the program draws all charts again after every part
        if path not in drawn:
            drawn.add(path)
            draw(comparisons, path)

    folder = tmp_path_factory.mktemp("benchmark")
    config = write_config(folder, shapes)
    words = ["--parts", "inference", "training", "criterion", "postprocess", "data", "evaluation"]
    words += ["growth", "--quick", "--size", "64x96", "--configs", str(config), "--batch", "1", "2"]
    words += ["--dataset", f"{shapes}/annotations/instances_train.json:{shapes}/train"]
    with unchanged_process(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "benchmark", False)
        patch.setattr(report, "draw", draw_once)
        for part in (criterion, growth):  # measures in a separate process; tested on its own
            patch.setattr(
                part, "peaks_mib", lambda _, works, device: [8.0 / 4**i for i in range(len(works))]
            )
        benchmark.main([*words, "--output", str(folder / "out")])
    return folder / "out"


@pytest.mark.slow
def test_every_part_leaves_samples_tables_and_a_chart(output):
    content = json.loads((output / "benchmark.json").read_text())
    parts = content["parts"]
    assert list(parts) == [
        "inference",
        "training",
        "criterion",
        "postprocess",
        "data",
        "evaluation",
        "growth",
    ]
    for part, comparisons in parts.items():
        assert cv2.imread(str(output / f"{part}.png")) is not None
        for one in comparisons:
            for name, stages in one["timings"].items():
                assert len(stages["total"]) == 2 and min(stages["total"]) > 0
                assert one["medians"][name].keys() == stages.keys()
    titles = [one["title"] for comparisons in parts.values() for one in comparisons]
    tables = (output / "benchmark.md").read_text()
    assert all(title in tables for title in titles) and len(titles) == 2 + 1 + 1 + 1 + 2 + 1 + 3


@pytest.mark.slow
def test_memory_is_set_against_the_dense_reference(output):
    parts = json.loads((output / "benchmark.json").read_text())["parts"]
    facts = parts["criterion"][0]["facts"]
    assert facts["dense one-hot"]["extra MiB"] == 8.0
    assert facts["OneNet"]["extra MiB"] == 2.0 and facts["OneNet"]["of dense one-hot's"] == 0.25


@pytest.mark.slow
def test_the_machine_is_described(output):
    machine = json.loads((output / "benchmark.json").read_text())["machine"]
    assert machine["command"].startswith("python tools/dev/benchmark.py --parts inference training")
    assert machine["threads"] == 1 and machine["cpu"]
    assert machine["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.slow
def test_stages_of_inference_and_training(output):
    parts = json.loads((output / "benchmark.json").read_text())["parts"]
    for one in parts["inference"]:
        assert list(one["timings"]) == ["eager", "fused", "bf16"]
        for stages in one["timings"].values():
            assert list(stages) == ["preprocess", "backbone", "head", "post-process", "total"]
            ends = zip(*(stages[name] for name in stages if name != "total"), strict=True)
            assert [sum(of) for of in ends] == pytest.approx(stages["total"], rel=0.05, abs=1e-3)
    assert [one["images"] for one in parts["inference"]] == [1, 2]
    training = parts["training"][0]
    assert list(training["timings"]) == [
        "float32",
        "float32, branch",
        "bfloat16, channels_last",
    ] + ["bfloat16, channels_last, branch"]
    for name, stages in training["timings"].items():
        branch = ["one-to-many"] if "branch" in name else []
        expected = ["forward", "matching", "losses", *branch, "backward", "optimiser", "total"]
        assert list(stages) == expected
    assert all(fact["extra MiB"] > 0 for fact in training["facts"].values())


@pytest.mark.parametrize(
    ("config", "settings", "expected"),
    [
        (QUICK / "onenet.res18.bccd.yaml", ("eager",), ["float32", "float32, branch"]),
        (CENTERNET, ("eager",), ["float32"]),
        (
            CENTERNET,
            ("eager", "bf16"),
            ["float32", "bfloat16, channels_last"],
        ),
    ],
)
def test_trainings_that_are_timed(config, settings, expected):
    from benchmarks.options import Options
    from benchmarks.training import candidates

    options = Options(CPU, (config,), (64, 64), (1,), 1, 1, 0, settings=settings)
    assert list(candidates(config, options)) == expected


def test_settings_that_cannot_be_are_left_out_by_name(monkeypatch, capsys):
    import benchmark
    from benchmarks import options

    monkeypatch.setattr(options.shutil, "which", lambda name: None)
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: name != "onnx" or None)
    assert benchmark.choose_settings(None, CPU, quick=False) == ("eager", "fused", "bf16")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert "left out compiled, which needs a C++ compiler" in lines[0]
    assert "left out onnx, which needs onnx: pip install 'onenet[export]'" in lines[2]
    with pytest.raises(OneNetError, match="--settings compiled needs a C\\+\\+ compiler"):
        benchmark.choose_settings(["eager", "compiled"], CPU, quick=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "100x64"], "multiples of 32"),
        (["--size", "64"], "HEIGHTxWIDTH"),
        (["--device", "tpu"], "must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--repeats", "0"], "at least 1"),
        (["--parts", "coffee"], "coffee"),
        (["--configs", "nowhere.yaml", "--parts", "inference"], "nowhere.yaml"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, words, message):
    import benchmark

    with unchanged_process(), pytest.raises(SystemExit) as stop:
        benchmark.main(["--quick", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
