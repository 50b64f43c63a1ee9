"""CenterNet as a Detectron2 meta-architecture, which differs from OneNet's in its core alone."""

from __future__ import annotations

from detectron2.modeling import META_ARCH_REGISTRY

from onenet.baselines import centernet as core
from onenet.baselines.centernet_config import centernet_options

from .meta_arch import OneNet


@META_ARCH_REGISTRY.register()
class CenterNet(OneNet, core.CenterNet):
    """:class:`onenet.baselines.centernet.CenterNet` on Detectron2's backbones and dicts."""

    core_options = staticmethod(centernet_options)
