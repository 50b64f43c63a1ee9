"""The focal loss for sparse positives against its formula in float64, and what it keeps."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import sigmoid_focal_loss

from onenet.ops import chunks
from onenet.ops.focal import focal_loss, sparse_focal_loss

close = torch.testing.assert_close
NONE = (torch.empty(0, dtype=torch.int64),) * 3
THREE = tuple(torch.tensor([[0, 1, 1], [4, 0, 6], [2, 2, 0]]))


def random_logits(*shape, scale=4.0, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(logits, positives, alpha=0.25, gamma=2.0):
    """Loss and gradient of the plain formula in float64."""
    x = logits.detach().double().requires_grad_()
    goal = torch.zeros_like(x, dtype=torch.bool)
    goal[positives] = True
    loss = focal_loss(x, goal, alpha, gamma)
    loss.backward()
    return loss.detach(), x.grad


def sparse(logits, *arguments, **options):
    x = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss = sparse_focal_loss(x, *arguments, **options)
    loss.backward()
    return loss.detach(), x.grad


def exact(actual, expected):
    """To 1e-6, every entry on its own, down to where float32 ends."""
    for a, b in zip(actual, expected, strict=True):
        close(a.double(), b, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5), (0.5, 0.0), (1.0, 2.0)])
@pytest.mark.parametrize("positives", [NONE, THREE])
def test_loss_and_gradient_are_the_dense_ones(positives, alpha, gamma):
    logits = random_logits(2, 7, 3)
    loss, gradient = sparse(logits, positives, alpha, gamma)
    expected, slope = dense(logits, positives, alpha, gamma)
    assert loss.dtype == torch.float32 and loss.shape == ()
    exact([loss, gradient], [expected, slope])
    goal = torch.zeros_like(logits)
    goal[positives] = 1
    close(loss, sigmoid_focal_loss(logits, goal, alpha, gamma, "sum"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_extreme_logits(gamma):
    logits = random_logits(3, 40, 5, scale=8.0)
    values = torch.tensor([-200.0, -50, -17, -1e-4, 0, 1e-4, 17, 50, 200])
    logits[0, :9, 0] = logits[1, :9, 1] = values
    positives = (torch.ones(9, dtype=torch.int64), torch.arange(9), torch.full((9,), 1))
    exact(sparse(logits, positives, 0.25, gamma), dense(logits, positives, 0.25, gamma))


def test_sure_positives_leave_the_rest_exact():
    """As negatives they would outweigh the rest by seven powers of ten."""
    logits = random_logits(2, 7, 3, scale=1.0) - 8
    logits[THREE] = 50.0
    exact(sparse(logits, THREE), dense(logits, THREE))


def test_by_hand():
    """Logit 0: 0.25 · ¼ · ln 2 as a positive, 0.75 · ¼ · ln 2 as a negative."""
    at = (torch.tensor([0]), torch.tensor([1]))
    loss, gradient = sparse(torch.zeros(1, 3), at)
    close(loss, torch.tensor((0.25 + 2 * 0.75) / 4 * math.log(2)))
    # p² (p + 2 (1 - p) ln 2), times 0.75, or -0.25.
    slope = (0.5 + math.log(2)) / 4
    close(gradient, torch.tensor([[0.75 * slope, -0.25 * slope, 0.75 * slope]]))


@pytest.mark.parametrize("value", [1e4, -1e4, -math.inf])
def test_certain_scores_are_finite(value):
    at = (torch.tensor([0]), torch.tensor([1]))
    logits = torch.full((2, 2), value)
    if value == -math.inf:
        logits[at] = 0.0
    loss, gradient = sparse(logits, at)
    assert loss.isfinite() and gradient.isfinite().all()


def test_nan_stays_nan():
    loss, _ = sparse(torch.tensor([[math.nan, 0.0]]), NONE[:2])
    assert loss.isnan()


@pytest.mark.parametrize("size", [1, 6, 7, 41, 42, 43])
def test_chunks_of_any_size_give_the_same(monkeypatch, size):
    """42 entries: chunks that go into them, that do not, one, and a larger one."""
    logits = random_logits(2, 7, 3)
    whole = sparse(logits, THREE)
    monkeypatch.setattr(chunks, "_CPU_THREAD", size)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    exact(sparse(logits, THREE), [x.double() for x in whole])


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 9, 1), (3, 0, 4)])
def test_one_sample_one_class_and_none(shape):
    logits = random_logits(*shape)
    positives = tuple(i[:1] for i in logits.isfinite().nonzero(as_tuple=True))
    exact(sparse(logits, positives), dense(logits, positives))


@pytest.mark.parametrize(
    "logits",
    [
        pytest.param(random_logits(2, 3, 7).mT, id="transposed"),
        pytest.param(random_logits(2, 7, 9)[..., 3:6], id="part of a larger tensor"),
        pytest.param(random_logits(7, 3).expand(2, 7, 3), id="expanded"),
    ],
)
def test_any_order_in_memory(logits):
    x = logits.clone().requires_grad_()
    sparse_focal_loss(x.as_strided(logits.shape, x.stride()), THREE).backward()
    exact([x.grad], [dense(logits, THREE)[1]])
    base = logits.detach().requires_grad_()
    loss = sparse_focal_loss(base, THREE)
    (gradient,) = torch.autograd.grad(loss, base)
    exact([loss.detach(), gradient], dense(logits, THREE))


def test_repeated_positives_count_once():
    repeated = tuple(torch.cat((i, i[:2])) for i in THREE)
    counted = torch.tensor([False, True, True, True, False])
    logits = random_logits(2, 7, 3)
    actual = sparse(logits, repeated, counted=counted)
    close(actual[0], sparse(logits, THREE)[0])
    assert torch.equal(actual[1], sparse(logits, THREE)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits = random_logits(2, 7, 3).to(dtype)
    loss, gradient = sparse(logits, THREE)
    expected, slope = sparse(logits.float(), THREE)
    assert gradient.dtype == dtype
    close(loss, expected)
    assert torch.equal(gradient, slope.to(dtype))


def test_a_loss_scale_saves_small_gradients_of_float16():
    """p = e^-6: the gradient, 1.4e-8 without a scale, is nothing in float16."""
    logits = torch.full((1, 1), -6.0, dtype=torch.float16).requires_grad_()
    (1024 * sparse_focal_loss(logits, NONE[:2])).backward()
    expected = 1024 * dense(logits, NONE[:2])[1]
    assert 0 < dense(logits, NONE[:2])[1].item() < 6e-8
    close(logits.grad.double(), expected, rtol=1e-2, atol=0)


def test_autocast_changes_nothing():
    logits = random_logits(2, 7, 3)
    x = logits.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sparse_focal_loss(x, THREE)
    loss.backward()
    exact([loss.detach(), x.grad], [v.double() for v in sparse(logits, THREE)])


def test_the_gradient_is_scaled():
    logits = random_logits(2, 7, 3).requires_grad_()
    (3 * sparse_focal_loss(logits, THREE) / 7).backward()
    close(logits.grad.double(), dense(logits, THREE)[1] * 3 / 7, rtol=1e-6, atol=0)


class Large(TorchDispatchMode):
    """Storages of at least ``count`` elements that are made."""

    def __init__(self, count):
        super().__init__()
        self.count = count
        self.found = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= self.count:
            storage = out.untyped_storage()
            self.found[storage.data_ptr()] = storage  # kept, so that no address comes twice
        return out


@pytest.mark.parametrize("wanted", [True, False])
def test_the_gradient_is_all_that_is_as_large_as_the_logits(monkeypatch, wanted):
    monkeypatch.setattr(chunks, "_CPU_THREAD", 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    logits = random_logits(2, 7, 3).requires_grad_(wanted)
    own = logits.untyped_storage().data_ptr()
    with Large(logits.numel()) as large:
        loss = sparse_focal_loss(logits, THREE)
        if wanted:
            loss.backward()
    assert loss.requires_grad == wanted
    made = set(large.found) - {own}
    assert made == ({logits.grad.untyped_storage().data_ptr()} if wanted else set())


def test_under_no_grad_nothing_is_kept():
    logits = random_logits(2, 7, 3).requires_grad_()
    with torch.no_grad():
        loss = sparse_focal_loss(logits, THREE)
    assert not loss.requires_grad
    exact([loss], dense(logits, THREE)[:1])


def test_backward_goes_once_and_without_create_graph():
    logits = random_logits(2, 7, 3).requires_grad_()
    loss = sparse_focal_loss(logits, THREE)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        loss.backward()
    loss = sparse_focal_loss(logits, THREE)
    with pytest.raises(RuntimeError, match="without create_graph"):
        torch.autograd.grad(loss, logits, create_graph=True)
