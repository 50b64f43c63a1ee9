"""gpu_check.py, rehearsed on the CPU: every step runs, and one that fails costs only itself."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import unchanged_process

from onenet.cli import training_parser
from onenet.errors import OneNetError
from onenet.lightning.main import run

pytestmark = pytest.mark.usefixtures("tools")
CPU = torch.device("cpu")


def check_of(folder: Path, step: str, **options: Any) -> Any:
    from gpu_checks.check import Check

    return Check(step, folder, CPU, quick=True, limit=600, **options)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    from gpu_checks.check import read

    return read(folder)


def test_the_machine(tmp_path):
    from gpu_checks import machine

    machine.run(check_of(tmp_path, "machine"))
    described, copy, product = rows_of(tmp_path)
    assert described["versions"]["torch"] and described["step"] == "machine"
    assert copy["gb_per_s"] > 0 and product["tflop_per_s"] > 0


@pytest.mark.slow
def test_inference_measures_every_variant_and_compiles_at_the_best_batch(tmp_path, monkeypatch):
    from gpu_checks import compiled, inference

    check = check_of(tmp_path, "inference")
    monkeypatch.setattr(type(check), "configs", property(lambda self: [_config("res18.dcn")]))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    inference.run(check)
    rows = rows_of(tmp_path)
    variants = ["bf16 graph", "float32", "bf16"]
    assert [(r["variant"], r["batch"]) for r in rows[:6]] == [
        (variant, count) for count in (1, 2) for variant in variants
    ]
    assert {r["variant"] for r in rows[6:]} == {"bf16 graph, more kernels"}
    assert all(r["images_per_s"] > 0 and "error" not in r for r in rows)
    best = max(rows, key=lambda r: r["images_per_s"])["batch"]
    assert inference.best_batch(check, _config("res18.dcn")) == best
    # What is compiled in a process of its own.
    prepare = compiled.prepare
    monkeypatch.setattr(compiled, "prepare", lambda m, **o: prepare(m, **(o | {"compile": False})))
    (tmp_path / "compiling").mkdir()
    (tmp_path / "compiling" / "onenet.res18.dcn-1.go").touch()
    compiled.compile_one(check_of(tmp_path, "compiled"), "onenet.res18.dcn", 1)
    assert (tmp_path / "compiling" / "onenet.res18.dcn-1.ready").exists()
    assert rows_of(tmp_path)[-1]["variant"] == "bf16 compiled"


def _config(name: str) -> Path:
    from gpu_checks.check import CONFIGS

    return CONFIGS / f"onenet.{name}.yaml"


def test_models_that_compile_are_timed_and_those_that_do_not_are_named(tmp_path, monkeypatch):
    from gpu_checks import compiled

    # In place of the program: ready at once, and gone when told to go; the last one fails.
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib, sys, time\n"
        "_, config, count = sys.argv[sys.argv.index('--step') + 1].split()\n"
        "if config.endswith('nodcn'): sys.exit('no compiler')\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--out') + 1]) / 'compiling'\n"
        "(folder / f'{config}-{count}.ready').touch()\n"
        "while not (folder / f'{config}-{count}.go').exists(): time.sleep(0.01)\n"
    )
    monkeypatch.setattr(compiled, "PROGRAM", program)
    compiled.run(check_of(tmp_path, "compiled"))
    rows = rows_of(tmp_path)
    assert {row["model"]: row["error"] for row in rows} == {
        "onenet.res18.nodcn-1": "no compiler",
        "onenet.res18.nodcn-2": "no compiler",
    }
    assert (tmp_path / "compiling" / "onenet.res18.dcn-2.go").exists()


@pytest.mark.slow
def test_training_names_its_stages_and_the_share_of_the_criterion(tmp_path, monkeypatch):
    from gpu_checks import training

    make = training.make_trainer
    thin = _config("res18.nodcn")
    monkeypatch.setattr(
        training, "make_trainer", lambda check, config, count: make(check, thin, count=count)
    )
    training.run(check_of(tmp_path, "training"))
    (row,) = rows_of(tmp_path)
    stages = ["forward ms", "matching and losses ms", "backward ms", "update ms"]
    assert [key for key in row if key.endswith(" ms")] == stages
    assert sum(row[stage] for stage in stages) == pytest.approx(row["ms"], rel=0.2)
    assert 0 < row["criterion_share"] < 1 and row["images_per_s"] > 0


@pytest.mark.slow
def test_a_training_on_images_tells_its_losses(tmp_path, shapes, monkeypatch):
    from gpu_checks import training

    monkeypatch.setattr(training, "_measure", lambda *_: None)
    data = f"{shapes}/annotations/instances_train.json:{shapes}/train"

    def in_this_process(command: list[str], **_: Any) -> Namespace:
        words = [*command[2:], "MODEL.OneNet.NUM_CLASSES", "6"]
        with unchanged_process():
            run(training_parser().parse_args(words), "a test")
        return Namespace(returncode=0, stderr="")

    monkeypatch.setattr(training.subprocess, "run", in_this_process)
    training.run(check_of(tmp_path, "training", data=data))
    (row,) = rows_of(tmp_path)
    assert "error" not in row, row
    assert len(row["losses"]) == 1 and row["last"]["iteration"] == 4


def test_the_criterion_is_measured_in_three_ways(tmp_path):
    from gpu_checks import criterion

    criterion.run(check_of(tmp_path, "criterion"))
    rows = rows_of(tmp_path)
    assert [row["way"] for row in rows] == ["copy", "events", "kernels", "graph"]
    assert all(row["ms"] > 0 for row in rows)


@pytest.mark.slow
def test_rivals_are_measured_beside_onenet(tmp_path, monkeypatch):
    from gpu_checks import rivals

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(rivals, "NAMES", rivals.NAMES[1:])
    rivals.run(check_of(tmp_path, "rivals"))
    rows = rows_of(tmp_path)
    assert [row["detector"] for row in rows] == [
        "OneNet R50",
        *[name for name in rivals.NAMES for _ in range(2)],
        *rivals.NAMES,
    ]
    assert all("error" not in row for row in rows)


def test_operators_that_the_device_lacks_are_named(tmp_path):
    from gpu_checks import micro

    micro.run(check_of(tmp_path, "micro"))
    rows = rows_of(tmp_path)
    wrong = {row["variant"] for row in rows if "error" in row}
    assert wrong <= {"one kernel", "with it, one kernel", "torchvision, float16"}
    assert {"gathering, float32", "torchvision, TF32", "two stages"} <= {
        row["variant"] for row in rows if "error" not in row
    }


def test_the_tests_that_need_a_card_and_torchrun_are_counted(tmp_path, monkeypatch):
    from gpu_checks import programs

    said = "FAILED tests/test_cuda.py::test_heads[fcos] - assert 0\n1 failed, 41 passed in 3.21s\n"
    calls: list[list[str]] = []

    def called(check: Any, words: list[str], *_: Any) -> tuple[int, str]:
        calls.append(words)
        return (1, said) if "pytest" in words else (0, "")

    monkeypatch.setattr(programs, "_run", called)
    programs.run_tests(check_of(tmp_path, "tests"))
    programs.run_torchrun(check_of(tmp_path, "torchrun"))
    tests, torchrun = rows_of(tmp_path)
    assert (tests["failed"], tests["passed"]) == (1, 41)
    assert tests["names"] == ["tests/test_cuda.py::test_heads[fcos] - assert 0"]
    assert calls[0][-1].endswith("test_cuda.py") and "torch.distributed.run" in calls[1]
    assert not torchrun["finished"]  # as nothing ran


def test_a_step_that_fails_or_hangs_ends_alone(tmp_path, monkeypatch):
    import gpu_check

    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "step = sys.argv[sys.argv.index('--step') + 1]\n"
        "if step == 'machine': sys.exit('no such card')\n"
        "if step == 'tests': time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu_check, "__file__", str(program))
    monkeypatch.setattr(gpu_check, "LIMITS", {"machine": 8, "tests": 2, "micro": 8})
    words = ["--device", "cpu", "--quick", "--out", str(tmp_path / "out"), "--budget", "18"]
    rows = gpu_check.run(
        gpu_check.build_parser().parse_args([*words, "--steps", *gpu_check.LIMITS])
    )
    assert [row["status"] for row in rows] == [
        "failed, status 1: no such card",
        "ended, out of time: no output",
        "done",
    ]
    assert "| micro" in (tmp_path / "out" / "table.md").read_text()


def test_no_card_and_old_results_are_told(tmp_path, monkeypatch):
    import gpu_check

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = gpu_check.build_parser().parse_args(["--out", str(tmp_path)])
    with pytest.raises(OneNetError, match="--device cpu --quick rehearses"):
        gpu_check.run(args)
    (tmp_path / "results.jsonl").write_text("")
    args = gpu_check.build_parser().parse_args(["--out", str(tmp_path), "--device", "cpu"])
    with pytest.raises(OneNetError, match="holds results already; give another --out"):
        gpu_check.run(args)


def test_rows_of_other_columns_stand_in_tables_of_their_own():
    import gpu_check

    rows = [
        {"step": "micro", "operator": "a|b", "ms": 1.23456},
        {"step": "micro", "operator": "c", "error": "no kernel"},
        {"step": "micro", "status": "done", "seconds": 3.0},
    ]
    text = gpu_check.table(rows)
    assert text.index("| micro") < text.index("## micro") < text.index("a/b")
    assert "1.23" in text and "no kernel" in text
