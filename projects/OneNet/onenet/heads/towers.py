"""What heads with two towers shared by all levels have in common: FCOS and RetinaNet."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from onenet.structures import Predictions

from .base import Head
from .branch import Branch

# Of each level, the outputs of the class and of the box tower, (B, C, H_l, W_l) each.
Towers = Iterable[tuple[Tensor, Tensor]]


class TowerHead(Head):
    """A class tower and a box tower; subclasses make the layers and read the boxes from their maps.

    Attributes:
        cls_conv_module, reg_conv_module: the towers.
        cls_score, box_layer: the layers after them.
    """

    cls_conv_module: nn.Module
    reg_conv_module: nn.Module
    cls_score: nn.Conv2d

    @property
    @abstractmethod
    def box_layer(self) -> nn.Conv2d:
        """The layer after the box tower."""

    @abstractmethod
    def predict(self, towers: Towers, class_layer: nn.Module, box_layer: nn.Module) -> Predictions:
        """Predictions of all levels by these layers."""

    def forward(self, features: list[Tensor]) -> Predictions:
        """Predictions from maps (B, C, H_l, W_l), one for each stride."""
        return self.predict(self._towers(features), self.cls_score, self.box_layer)

    def outputs(
        self, features: list[Tensor], branch: Branch | None = None
    ) -> dict[str, Predictions]:
        """See :meth:`Head.outputs`. A branch reads both towers."""
        if branch is None:
            return {"main": self(features)}
        towers = list(self._towers(features))
        main = [(branch.for_main(c), branch.for_main(b)) for c, b in towers]
        many = [
            (F.relu(branch.feat(branch.for_branch(c))), branch.for_branch(b)) for c, b in towers
        ]
        return {
            "main": self.predict(main, self.cls_score, self.box_layer),
            "aux": self.predict(many, branch.cls_score, branch.boxes(self.box_layer)),
        }

    def make_branch(self, **options: Any) -> Branch:
        """A branch whose feature convolution follows the class tower."""
        return Branch(
            self.cls_score, self.box_layer, init=self.init, prior_prob=self.prior_prob, **options
        )

    def _towers(self, features: list[Tensor]) -> Towers:
        # One level at a time, as the predictor asks for it: inference keeps no map longer.
        return ((self.cls_conv_module(x), self.reg_conv_module(x)) for x in features)
