"""Sparse R-CNN as a Detectron2 meta-architecture.

It takes the name that the original repository registers, too: a process imports one of them.
"""

from __future__ import annotations

from detectron2.modeling import META_ARCH_REGISTRY

from onenet.baselines import sparse_rcnn as core
from onenet.baselines.sparse_rcnn_config import sparse_rcnn_options

from .meta_arch import MetaArchitecture


@META_ARCH_REGISTRY.register()
class SparseRCNN(MetaArchitecture, core.SparseRCNN):
    """:class:`onenet.baselines.sparse_rcnn.SparseRCNN` as a Detectron2 meta-architecture."""

    core_options = staticmethod(sparse_rcnn_options)
