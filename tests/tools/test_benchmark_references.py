"""The benchmark's references compute the same as OneNet, or what they claim to compute."""

from __future__ import annotations

import pytest
import torch
from helpers.project import ROOT

from onenet import Predictions, Targets
from onenet.inference.postprocess import detect

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("tools")


def losses_and_gradients(criterion, predictions, targets):
    """Losses by name, and the gradients of their sum for logits and boxes."""
    logits = predictions.logits.detach().requires_grad_()
    boxes = predictions.boxes.detach().requires_grad_()
    given = Predictions(logits, boxes, predictions.samples, predictions.levels)
    losses = criterion(given, targets)
    sum(losses.values()).backward()
    return losses, logits.grad, boxes.grad


@pytest.mark.parametrize("objects", [(3, 5), (0, 4), (0, 0)])
@pytest.mark.parametrize("classes", [1, 7])
def test_the_dense_reference_equals_the_criterion(objects, classes):
    from benchmarks.criterion import make_predictions, make_targets, onenet_criterion
    from benchmarks.dense import DenseCriterion

    size = (64, 96)
    predictions = make_predictions(2, size, classes, CPU)
    targets = [make_targets(1, size, classes, m, CPU)[0] for m in objects]
    expected, found = (
        losses_and_gradients(criterion, predictions, targets)
        for criterion in (DenseCriterion(), onenet_criterion())
    )
    assert list(expected[0]) == list(found[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_dense_reference_gives_a_shared_sample_the_last_target_s_class():
    from benchmarks.criterion import make_predictions, onenet_criterion
    from benchmarks.dense import DenseCriterion

    predictions = make_predictions(1, (64, 64), 3, CPU)
    box = torch.tensor([[10.0, 12.0, 40.0, 50.0]])
    predictions = Predictions(
        torch.full_like(predictions.logits, -3.0),
        predictions.boxes,
        predictions.samples,
        predictions.levels,
    )
    targets = [Targets(box.repeat(2, 1), torch.tensor([2, 0]), (64, 64))]
    expected = losses_and_gradients(DenseCriterion(), predictions, targets)
    torch.testing.assert_close(
        losses_and_gradients(onenet_criterion(), predictions, targets), expected
    )
    rising = (expected[1] < 0).nonzero()
    assert rising[:, 2].tolist() == [0]


@pytest.mark.parametrize("k", [1, 10, 10_000])
def test_the_other_post_processes_find_the_same(k):
    from benchmarks.criterion import make_predictions
    from benchmarks.postprocess import flat_top_k, per_class_top_k

    p = make_predictions(2, (64, 64), 5, CPU)
    by_class = per_class_top_k(p.logits.transpose(1, 2), p.boxes, k)
    flat = flat_top_k(p.logits, p.boxes, k)
    for ours, *others in zip(detect(p, k), by_class, flat, strict=True):
        for boxes, scores, labels in others:
            torch.testing.assert_close(scores, ours.scores)
            different = (labels != ours.labels) | (boxes != ours.boxes).any(dim=1)
            # Only where sigmoid turns scores that are close into ties.
            assert (scores[different].diff().abs() < 1e-6).all() and different.float().mean() < 0.1


def test_extra_memory_is_that_of_the_work(monkeypatch):
    from benchmarks.memory import peaks_mib

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    sizes = [8, 64, 16]
    found = peaks_mib("helpers.benchmark_work:allocate", [{"mib": mib} for mib in sizes], CPU)
    if found is None:
        pytest.skip("needs Linux's /proc")
    assert found == pytest.approx(sizes, rel=0.1, abs=1)


@pytest.mark.parametrize("background", [False, True])
def test_made_up_scores_have_as_many_candidates_as_they_should(background):
    from benchmarks.baseline_detectors import with_background, with_candidates

    if background:
        logits = torch.zeros(2, 50, 4)
        scores = with_background(logits, 20).softmax(dim=-1)
        assert scores.shape == logits.shape
        assert ((scores[..., 1:] > 0.01).sum(dim=(1, 2)) == 20).all()
        assert (with_background(logits, 0).softmax(dim=-1)[..., 0] > 0.99).all()
    else:
        levels = [torch.zeros(2, 6, 4, 5), torch.zeros(2, 6, 2, 3)]
        made = with_candidates(levels, 20)
        assert [m.shape for m in made] == [level.shape for level in levels]
        counts = sum((m.sigmoid() > 0.05).flatten(1).sum(dim=1) for m in made)
        assert counts.tolist() == [20, 20]


def test_folded_norms_leave_the_network_as_it_was():
    from benchmarks.networks import fold_torchvision, settle_norms
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(weights=None).eval()
    images = torch.randn(1, 3, 64, 64)
    settle_norms(network, lambda: network(images))
    assert not network.training and network.bn1.momentum == 0.1
    with torch.no_grad():
        expected = network(images)
        assert fold_torchvision(network) == 20
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
