"""The moving average of weights, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from helpers.configs import CONFIGS, refused
from torch import nn

from onenet.training.ema import ModelEMA


class Tiny(nn.Module):
    """A weight, a frozen weight, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.frozen = nn.Parameter(torch.tensor(0.1), requires_grad=False)
        self.norm = nn.BatchNorm1d(1)
        self.register_buffer("constant", torch.tensor(0.3), persistent=False)

    def becomes(self, value: float) -> Tiny:
        """The next iteration's: weights and statistics of ``value``, one more batch."""
        with torch.no_grad():
            self.weight.fill_(value)
            self.norm.running_mean.fill_(value)
        self.norm.num_batches_tracked += 1
        return self


def test_the_decay_warms_up():
    model = Tiny()
    ema = ModelEMA(model, decay=0.9998)
    ema.update(model.becomes(10.0))  # decay 1 / 10
    expected = [0.1 * 1 + 0.9 * 10, 0.1 * -2 + 0.9 * 10]
    assert ema.model.weight.tolist() == pytest.approx(expected)
    ema.update(model.becomes(20.0))  # decay 2 / 11
    expected = [2 / 11 * value + 9 / 11 * 20 for value in expected]
    assert ema.model.weight.tolist() == pytest.approx(expected)
    assert ema.updates == 2


def test_the_decay_ends_at_what_it_should_be():
    model = Tiny()
    ema = ModelEMA(model, decay=0.75)
    ema.updates = 1000
    ema.update(model.becomes(5.0))
    assert ema.model.weight.tolist() == pytest.approx([0.75 * 1 + 1.25, 0.75 * -2 + 1.25])


def test_an_iteration_that_was_skipped_leaves_the_average_alone():
    model = Tiny()
    ema = ModelEMA(model, decay=0.75)
    ema.updates = 1000
    ema.update(model.becomes(5.0), torch.tensor(True))
    before = ema.model.weight.tolist()
    assert before == [2.0, -0.25]
    ema.update(model.becomes(9.0), torch.tensor(False))
    assert ema.model.weight.tolist() == before


def test_statistics_are_averaged_and_counters_copied():
    model = Tiny()
    ema = ModelEMA(model, decay=0.5)
    ema.updates = 1000
    ema.update(model.becomes(4.0))
    assert ema.model.norm.running_mean.tolist() == [2.0]
    assert ema.model.norm.running_var.tolist() == [1.0]
    assert ema.model.norm.num_batches_tracked == 1
    assert torch.equal(ema.model.frozen, model.frozen)  # bit for bit: x is the average of x
    assert torch.equal(ema.model.constant, model.constant)


def test_the_average_is_for_evaluation_and_the_model_stays_as_it_is():
    model = Tiny().train()
    ema = ModelEMA(model)
    ema.update(model.becomes(3.0))
    assert model.training and model.weight.requires_grad and model.weight.tolist() == [3.0, 3.0]
    assert not any(module.training for module in ema.model.modules())
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_it_goes_on_where_its_state_was_saved():
    model, other = Tiny(), Tiny().becomes(9.0)
    ema, resumed = ModelEMA(model, decay=0.9), ModelEMA(other, decay=0.9)
    ema.update(model.becomes(2.0))
    resumed.load_state_dict(ema.state_dict())
    for one in (ema, resumed):
        one.update(model.becomes(7.0))
    assert torch.equal(ema.model.weight, resumed.model.weight) and resumed.updates == 2


def test_restarting_forgets():
    model = Tiny()
    ema = ModelEMA(model)
    ema.update(model.becomes(2.0))
    ema.restart(model.becomes(6.0))
    assert ema.model.weight.tolist() == [6.0, 6.0] and ema.updates == 0


def test_the_memory_format_makes_no_difference():
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3)
    averages = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = nn.Conv2d(3, 4, 3)
        model.load_state_dict(plain.state_dict())
        model.to(memory_format=layout)
        ema = ModelEMA(model, decay=0.5)
        with torch.no_grad():
            model.weight += torch.arange(108.0).view(4, 3, 3, 3)
        ema.update(model)
        averages.append(ema.model.weight)
    assert torch.equal(*averages)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none_is_refused(decay):
    message = refused(CONFIGS / "onenet.res18.nodcn.yaml", "MODEL_EMA.DECAY", str(decay))
    assert message == f"MODEL_EMA.DECAY is {decay}; expected a number from 0 to below 1"
    with pytest.raises(ValueError, match="decay must be from 0 to below 1"):
        ModelEMA(Tiny(), decay)
