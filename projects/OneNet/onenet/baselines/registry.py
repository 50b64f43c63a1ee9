"""The rivals: whole models that ``MODEL.META_ARCHITECTURE`` can name on the embedded engine.

Each registers itself where it is defined. One of your own needs no change here::

    @register("MyDetector")
    def build(cfg):  # MODEL.META_ARCHITECTURE "MyDetector"
        return ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fvcore.common.registry import Registry
from torch import nn

# ``cfg -> module``, which takes and gives what onenet.detector.OneNet does. Its backbone is the
# submodule ``backbone``, or else onenet.checkpoints.weights does not find it.
BASELINE_REGISTRY = Registry("ONENET_BASELINE")
Builder = Callable[[Any], nn.Module]


def register(name: str) -> Callable[[Builder], Builder]:
    """Decorator: registers under a name that the function cannot have, such as one with a dot."""

    def named(build: Builder) -> Builder:
        build.__name__ = name
        BASELINE_REGISTRY.register(build)
        return build

    return named
