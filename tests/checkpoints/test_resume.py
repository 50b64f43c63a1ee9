"""What a run refuses to resume from, and the way out that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from onenet.checkpoints.resume import restore
from onenet.errors import CheckpointError

PATH = Path("run") / "model_0000003.pth"


def parts() -> dict:
    model = nn.Linear(2, 1)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=1.0)}


def refused(content: dict) -> str:
    with pytest.raises(CheckpointError) as error:
        restore(parts(), content, PATH)
    return str(error.value)


def test_the_iterations_of_a_checkpoint_that_fits():
    content = {name: part.state_dict() for name, part in parts().items()}
    own = parts()
    assert restore(own, {**content, "iteration": 3}, PATH) == 4
    assert torch.equal(own["model"].weight, content["model"]["weight"])


def test_a_checkpoint_of_detectron2_names_its_engine():
    message = refused({"model": parts()["model"].state_dict(), "trainer": {}, "iteration": 3})
    assert message.startswith(f"{PATH} is a checkpoint of Detectron2's trainer. Resume with the")
    assert "(--engine detectron2), or start a new run with MODEL.WEIGHTS" in message


def test_an_average_that_the_run_has_not():
    message = refused({"ema": {}, "iteration": 3})
    assert "cannot be resumed with MODEL_EMA.ENABLED False; its run had True" in message


def test_other_shapes():
    other = nn.Linear(3, 1).state_dict()
    message = refused({"model": other, "optimizer": {}, "iteration": 3})
    assert "cannot be resumed with this config" in message and "size mismatch" in message
