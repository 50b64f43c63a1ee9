"""CUDA graphs of inference: which sizes are kept. test_cuda_inference.py runs them on a card."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from onenet.baselines.queries import QueryDetector
from onenet.inference import graphs
from onenet.inference.graphs import GraphForEachSize
from onenet.inference.optimize import check_graphs, prepare


def test_the_size_that_was_used_least_recently_is_captured_again(monkeypatch):
    captured = []

    def capture(self, batch):
        captured.append(len(batch))
        own = torch.empty_like(batch)
        return graphs._Captured(SimpleNamespace(replay=lambda: None), [own], [own])

    monkeypatch.setattr(GraphForEachSize, "_capture", capture)
    monkeypatch.setattr(graphs, "MAX_SIZES", 2)
    run = GraphForEachSize(None)
    for count in (1, 2, 1, 3, 1, 2):
        (found,) = run(torch.full((count, 3), float(count)))
        assert torch.equal(found, torch.full((count, 3), float(count)))
    assert captured == [1, 2, 3, 2]


def test_what_is_found_stays_when_the_next_batch_comes(monkeypatch):
    own = torch.zeros(1)
    captured = graphs._Captured(SimpleNamespace(replay=lambda: None), [own], [own])
    monkeypatch.setattr(GraphForEachSize, "_capture", lambda self, batch: captured)
    run = GraphForEachSize(None)
    (first,), (second,) = run(torch.ones(1)), run(torch.full((1,), 2.0))
    assert (first.item(), second.item()) == (1.0, 2.0)


def test_a_compiled_model_has_graphs_already():
    place = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(ValueError, match="choose one of the two"):
        prepare(SimpleNamespace(pixel_mean=place), compile=True, cuda_graphs=True)


def test_all_that_a_model_finds_by_is_copied_into_the_graph(monkeypatch):
    """A detector of queries also gives each image's size."""
    own = [torch.zeros(2, 3), torch.zeros(2, 2)]
    captured = graphs._Captured(SimpleNamespace(replay=lambda: None), own, own)
    monkeypatch.setattr(GraphForEachSize, "_capture", lambda self, *inputs: captured)
    found = GraphForEachSize(None)(torch.ones(2, 3), torch.full((2, 2), 7.0))
    assert [tensor.unique().tolist() for tensor in found] == [[1.0], [7.0]]


def test_a_model_that_makes_the_host_wait_is_refused():
    place = SimpleNamespace(device=torch.device("cuda"))
    given = {"pixel_mean": place, "finding_waits": QueryDetector.finding_waits}
    model = type("SparseRCNN", (), given)()
    with pytest.raises(ValueError, match="SparseRCNN makes the host wait.*no CUDA graph"):
        check_graphs(model, compile=False)
