"""One iteration: batch norms that get a single value."""

from __future__ import annotations

import pytest
from helpers.runs import train, write_config

SMALL = {"INPUT__MIN_SIZE_TRAIN": [32], "INPUT__MAX_SIZE_TRAIN": 32, "INPUT__CROP__ENABLED": False}


@pytest.mark.parametrize("how", [{"SOLVER__IMS_PER_BATCH": 1}, {"SOLVER__ACCUMULATE": 4}])
def test_a_batch_norm_of_one_value_per_channel(shapes, tmp_path, capsys, how):
    with pytest.raises(SystemExit) as stop:
        train(write_config(tmp_path, shapes, **SMALL, **how))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: a batch norm got one value per channel")
    number = how.get("SOLVER__IMS_PER_BATCH", 4)
    assert f"SOLVER.IMS_PER_BATCH is {number}" in error and "INPUT.MIN_SIZE_TRAIN is 32" in error


def test_two_images_of_that_size_train(shapes, tmp_path):
    train(write_config(tmp_path, shapes, **SMALL, SOLVER__IMS_PER_BATCH=2, SOLVER__MAX_ITER=1))
