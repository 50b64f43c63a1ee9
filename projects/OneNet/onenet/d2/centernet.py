"""CenterNet as a Detectron2 meta-architecture."""

from __future__ import annotations

from detectron2.modeling import META_ARCH_REGISTRY

from onenet.baselines import centernet as core
from onenet.baselines.centernet_config import centernet_options

from .meta_arch import MetaArchitecture


@META_ARCH_REGISTRY.register()
class CenterNet(MetaArchitecture, core.CenterNet):
    """:class:`onenet.baselines.centernet.CenterNet` as a Detectron2 meta-architecture."""

    core_options = staticmethod(centernet_options)
