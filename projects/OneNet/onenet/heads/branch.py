"""The one-to-many branch: a second predictor beside a head's own, which only training has.

Many samples of every object teach the shared layers; the head's own predictor still learns one an
object, so it needs no NMS. Two predictors on one network: DDQ (arXiv 2303.12776) and YOLOv10
(arXiv 2405.14458, "dual label assignments").
"""

from __future__ import annotations

from torch import Tensor, nn

from .base import BoxConv, conv3x3, initialise


class Branch(nn.Module):
    """A feature convolution, a class layer and, unless the head's is shared, a box layer.

    Args:
        class_layer, box_layer: the head's, whose sizes the branch's own have.
        share_boxes: predict boxes with the head's own layer.
        detach: do not let the branch's losses train what it reads. A shared box layer still learns.
        main_gradient: the share of the gradient of the head's own predictors that trains what the
            branch reads: 1, or 0 as in YOLOv10's code, or between.
        init, prior_prob: see :func:`~onenet.heads.base.initialise`.
    """

    def __init__(
        self,
        class_layer: nn.Conv2d,
        box_layer: nn.Conv2d,
        *,
        share_boxes: bool = True,
        detach: bool = False,
        main_gradient: float = 1.0,
        init: str = "xavier",
        prior_prob: float = 0.01,
    ) -> None:
        super().__init__()
        self.detach, self.main_gradient = detach, main_gradient
        channels = class_layer.in_channels
        self.feat = conv3x3(channels, channels)
        self.cls_score = conv3x3(channels, class_layer.out_channels)
        self.box_pred = None if share_boxes else BoxConv(channels, box_layer.out_channels)
        initialise(self, self.cls_score, prior_prob=prior_prob, init=init)

    def boxes(self, shared: nn.Module) -> nn.Module:
        """The branch's box layer, or the head's, ``shared``."""
        return shared if self.box_pred is None else self.box_pred

    def for_branch(self, x: Tensor) -> Tensor:
        """A map that the branch shares with the head, as the branch reads it."""
        return x.detach() if self.detach else x

    def for_main(self, x: Tensor) -> Tensor:
        """The same map as the head's own predictors read it."""
        share = self.main_gradient
        return x if share == 1 else x.detach().lerp(x, share) if share else x.detach()
