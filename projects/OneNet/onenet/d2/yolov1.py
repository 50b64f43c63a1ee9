"""YOLOv1 as a Detectron2 meta-architecture."""

from __future__ import annotations

from detectron2.modeling import META_ARCH_REGISTRY

from onenet.baselines import yolov1 as core
from onenet.baselines.yolov1_config import yolov1_options

from .meta_arch import MetaArchitecture


@META_ARCH_REGISTRY.register()
class YOLOv1(MetaArchitecture, core.YOLOv1):
    """:class:`onenet.baselines.yolov1.YOLOv1` as a Detectron2 meta-architecture."""

    core_options = staticmethod(yolov1_options)
