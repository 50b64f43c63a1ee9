"""The tests that need a card, and the trainer under torchrun with NCCL."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from _shared.shapes_dataset import make_dataset

from .check import CONFIGS, Check

ROOT = Path(__file__).parents[3]
# Those whose names say so, and single tests of other files.
FILES = ("test_cuda.py", "test_cuda_inference.py", "test_cuda_training.py")
FILES += ("ops/test_fused_criterion.py",)
OTHERS = ("assignment/test_criterion_batches.py", "lightning/test_trainer_waits.py")
WORKERS = 8
# Errors for waits inside steps: not in the first, while NCCL makes its group, nor in the second,
# before which DistributedDataParallel puts the gradients in order.
WATCHED = """
import torch
from onenet.lightning.trainer import Trainer

step = Trainer.step

def watched(self, batch):
    if self.iteration < 2 or not torch.cuda.is_available():
        return step(self, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        return step(self, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")

Trainer.step = watched
"""


def run_tests(check: Check) -> None:
    words = ["-v", "-p", "no:cacheprovider", "--tb=short", "-rfE", "--durations=12"]
    if importlib.util.find_spec("xdist"):
        words += ["-n", str(2 if check.quick else WORKERS), "--dist", "worksteal"]
    tests = [str(ROOT / "tests" / file) for file in FILES[: 1 if check.quick else None]]
    if check.device.type == "cuda":
        tests += [str(ROOT / "tests" / file) for file in OTHERS]
        words += ["-k", "cuda or fused"]
    environment = {**os.environ, "ONENET_TEST_DEVICE": check.device.type, "OMP_NUM_THREADS": "1"}
    code, out = _run(check, ["-m", "pytest", *words, *tests], environment, "pytest.log")
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", out)}
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", out, flags=re.MULTILINE)
    check.record(status=code, **counts, names=[line[:300] for line in failed])


def run_torchrun(check: Check) -> None:
    """Five steps in mixed precision, with an error for every wait after the second."""
    data, folder = check.out / "shapes", check.out / "torchrun"
    make_dataset(data, train=8, val=1, size=64, seed=0)
    (check.out / "watched.py").write_text(WATCHED, encoding="utf-8")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    words += [CONFIGS.parent / "train_net.py", "--engine", "lightning"]
    words += ["--config-file", CONFIGS / "onenet.res18.dcn.yaml"]
    words += ["--overwrite", "--import", check.out / "watched.py"]
    words += ["MODEL.DEVICE", check.device.type]
    words += ["DATASETS.TRAIN", f"('{data}/annotations/instances_train.json:{data}/train',)"]
    words += ["DATASETS.TEST", "()", "MODEL.WEIGHTS", "''", "MODEL.OneNet.NUM_CLASSES", 6]
    words += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 5, "SOLVER.AMP.ENABLED", True]
    words += ["DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", folder]
    if check.quick:
        words += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.CROP.ENABLED", False]
    words = [str(word) for word in words]
    code, out = _run(check, words, dict(os.environ), "torchrun-output.log")
    found = (folder / "model_final.pth").exists()
    error = {} if code == 0 and found else {"error": (out.strip().splitlines() or [""])[-1][:300]}
    check.record(status=code, finished=found, **error)


def _run(check: Check, words: list[str], environment: dict[str, str], log: str) -> tuple[int, str]:
    """Status and output of a Python program; 124 if it takes longer than the step may.

    Args:
        log: name of the file that takes the output as it comes.
    """
    path = check.out / log
    with path.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
        try:
            status = process.wait(timeout=max(check.left - 2, 1))
        except subprocess.TimeoutExpired:
            process.kill()
            status = 124
    return status, path.read_text(encoding="utf-8", errors="replace")
