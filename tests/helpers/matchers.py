"""Matchers with a known answer."""

from __future__ import annotations

import torch
from torch import nn

from onenet import Matches


class Fixed(nn.Module):
    """A matcher with a given answer."""

    def __init__(self, *triples):
        super().__init__()
        columns = torch.tensor(triples, dtype=torch.int64).reshape(-1, 3).T
        self.matches = Matches(*columns)

    def forward(self, predictions, targets):
        return self.matches
