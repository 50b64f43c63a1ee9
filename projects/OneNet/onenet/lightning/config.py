"""The embedded engine's config: Detectron2's keys that it honours, and OneNet's own.

A config file is plain YAML with Detectron2's ``_BASE_``; nothing in it is ever executed. Whatever
the engine would not honour is an error here, not a surprise during training.
"""

from __future__ import annotations

import copy
import os
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import yacs.config
import yaml

from onenet.baselines.transformers_config import add_keys
from onenet.config.backbone import choose_weights
from onenet.config.keys import add_onenet_config
from onenet.config.rules import check_embedded
from onenet.config.yaml import fits_64_bits, read_with_bases
from onenet.errors import ConfigError

from .detectron2_keys import detectron2_only

COMMAND_LINE = "command line"


class CfgNode(yacs.config.CfgNode):
    """yacs' node with ``_BASE_`` and clear errors, and without any way to execute a file."""

    def merge_from_file(self, cfg_filename: str | Path) -> None:
        """Merge a YAML file, after the files that its ``_BASE_`` names.

        Args:
            cfg_filename: path of the file. ``_BASE_`` is one path or a list of them, relative to
                the file that names it; bases may have bases.

        Raises:
            ConfigError: no such file, not plain YAML, or a key or value that does not belong.
        """
        for path, values in read_with_bases(Path(cfg_filename)):
            self._merge(values, str(path))

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge ``[KEY, VALUE, KEY, VALUE, ...]`` with dotted keys; values may be text."""
        if len(cfg_list) % 2:
            odd = next((word for word in cfg_list if "=" in str(word)), None)
            advice = f"; write {' '.join(str(odd).split('=', 1))!r}" if odd else ""
            raise ConfigError(
                f"{COMMAND_LINE}: overrides are KEY VALUE pairs, but there are {len(cfg_list)} "
                f"words: {' '.join(map(str, cfg_list))}{advice}"
            )
        for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            for part in reversed(str(key).split(".")):
                value = {part: value}
            self._merge(value, COMMAND_LINE)

    @classmethod
    def _load_cfg_py_source(cls, filename: str) -> CfgNode:
        raise ConfigError(f"{filename}: a config is a YAML file; Python is never executed")

    def _merge(
        self, values: Mapping[Any, Any], source: str, node: CfgNode | None = None, prefix: str = ""
    ) -> None:
        node = self if node is None else node
        for name, value in values.items():
            key = f"{prefix}{name}"
            if name not in node and node.is_new_allowed():
                node[name] = _read_new(value, key, source)
            elif name not in node:
                self._refuse(key, value, source)
            elif node.is_new_allowed() and not isinstance(value, Mapping):
                node[name] = _read_new(value, key, source)
            elif not isinstance(node[name], CfgNode):
                node[name] = _coerce(value, node[name], key, source)
            elif isinstance(value, Mapping):
                self._merge(value, source, node[name], f"{key}.")
            else:
                raise ConfigError(
                    f"{source}: {key} is a section, but its value is {value!r}; give its keys: "
                    f"{', '.join(f'{key}.{below}' for below in node[name]) or f'{key}.…'}"
                )

    def _refuse(self, key: str, value: Any, source: str) -> None:
        """Raise for a key that is not there, unless it is one that may be ignored."""
        if self.key_is_deprecated(key):
            return
        if self.key_is_renamed(key):
            try:
                self.raise_key_rename_error(key)
            except KeyError as error:
                raise ConfigError(f"{source}: {error.args[0]}") from None
        below = list(value) if isinstance(value, Mapping) and key.count(".") < 4 else []
        if detectron2_only(key) and len(below) != 1:
            raise ConfigError(
                f"{source}: {key} is honoured by Detectron2 only; the embedded engine has no such "
                "key; remove it"
            )
        if below:
            return self._refuse(f"{key}.{below[0]}", value[below[0]], source)
        raise ConfigError(
            f"{source}: unknown key {key}; the nearest known key is {self._nearest(key)}"
        )

    def _nearest(self, key: str) -> str:
        known = list(_dotted(self))
        leaf = key.upper().rpartition(".")[2]
        same_leaf = [name for name in known if name.upper().rpartition(".")[2] == leaf]
        likeness = SequenceMatcher(b=key.upper(), autojunk=False)

        def alike(name: str) -> float:
            likeness.set_seq1(name.upper())
            return likeness.ratio()

        return max(same_leaf or known, key=alike)


def get_cfg() -> CfgNode:
    """Every key that the embedded engine honours; defaults are Detectron2's and the original's."""
    node = CfgNode
    cfg = node()
    cfg.VERSION = 2  # of Detectron2's config format

    cfg.MODEL = node()
    # Or "CenterNet", "SparseRCNN", "YOLOv1", or "torchvision." and RetinaNet, FCOS, FasterRCNN,
    # SSD300 or SSDlite320, or "transformers." and Detr, ConditionalDetr, DabDetr, DeformableDetr,
    # RTDetr, RTDetrV2, DFine, Deimv2, LwDetr or RfDetr.
    cfg.MODEL.META_ARCHITECTURE = "OneNet"
    cfg.MODEL.DEVICE = "cuda"  # "cpu", "cuda", "cuda:N" or "mps"
    # A file, https://…, torchvision://NAME, timm://NAME, hf://OWNER/NAME or detectron2://…; ""
    # starts at random.
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PIXEL_MEAN = [103.530, 116.280, 123.675]  # in INPUT.FORMAT's order, of 0..255
    cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]  # in INPUT.FORMAT's order, of 0..255

    cfg.MODEL.BACKBONE = node()
    # Or a pyramid up to p7, "build_retinanet_resnet_fpn_backbone", or up to a pooled p6,
    # "build_resnet_fpn_backbone"; others: MODEL.MOBILENETV3 and MODEL.TIMM.
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2  # first stages that are not trained; the stem is the first

    cfg.MODEL.RESNETS = node()
    cfg.MODEL.RESNETS.DEPTH = 50  # 18, 34, 50 or 101
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]  # stages that come out, of "res2" to "res5"
    cfg.MODEL.RESNETS.NORM = "FrozenBN"  # "BN", "FrozenBN" or "SyncBN"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True  # False for torchvision's weights
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256  # 64 for depths 18 and 34

    cfg.MODEL.FPN = node()
    cfg.MODEL.FPN.IN_FEATURES = []  # stages that the pyramid merges, e.g. ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 256  # of every level

    cfg.MODEL.ANCHOR_GENERATOR = node()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]  # px, for each level or once
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]  # height / width, likewise
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.0  # of the first anchor's centre, in strides

    cfg.INPUT = node()
    cfg.INPUT.MIN_SIZE_TRAIN = (800,)  # px of the shorter side, one drawn for each image
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"  # or "range": between two sizes
    cfg.INPUT.MAX_SIZE_TRAIN = 1333  # px, most for the longer side
    cfg.INPUT.MIN_SIZE_TEST = 800  # px of the shorter side; 0 leaves images as they are
    cfg.INPUT.MAX_SIZE_TEST = 1333  # px, most for the longer side
    cfg.INPUT.RANDOM_FLIP = "horizontal"  # "vertical" or "none"
    cfg.INPUT.CROP = node()
    cfg.INPUT.CROP.ENABLED = False  # crop every other training image
    # "relative", "relative_range", "absolute" or "absolute_range".
    cfg.INPUT.CROP.TYPE = "relative_range"
    cfg.INPUT.CROP.SIZE = [0.9, 0.9]  # height, width: shares of the image, or px
    cfg.INPUT.FORMAT = "BGR"  # or "RGB"

    cfg.DATASETS = node()
    cfg.DATASETS.TRAIN = ()  # known names or ANNOTATIONS.json:IMAGE_FOLDER
    cfg.DATASETS.TEST = ()  # likewise

    cfg.DATALOADER = node()
    cfg.DATALOADER.NUM_WORKERS = 4  # processes that read images, for each GPU
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True  # no wide and tall images in one batch
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True  # train without images that have no objects
    # Or "RepeatFactorTrainingSampler": images of rare classes several times in an epoch.
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.0  # share of images below which a class is rare
    cfg.DATALOADER.REPEAT_SQRT = True  # repeat by the square root of what is missing to that share

    cfg.SOLVER = node()
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"  # or "WarmupCosineLR"
    cfg.SOLVER.MAX_ITER = 40000  # iterations of the whole training
    cfg.SOLVER.BASE_LR = 0.001  # learning rate after warm-up
    cfg.SOLVER.BASE_LR_END = 0.0  # learning rate that WarmupCosineLR ends at
    cfg.SOLVER.MOMENTUM = 0.9  # of SGD
    cfg.SOLVER.WEIGHT_DECAY = 0.0001  # of every parameter
    cfg.SOLVER.GAMMA = 0.1  # WarmupMultiStepLR: factor at each of STEPS
    cfg.SOLVER.STEPS = (30000,)  # iterations, rising
    cfg.SOLVER.WARMUP_FACTOR = 1.0 / 1000  # of BASE_LR, to start from
    cfg.SOLVER.WARMUP_ITERS = 1000  # iterations until BASE_LR
    cfg.SOLVER.WARMUP_METHOD = "linear"  # or "constant"
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000  # iterations
    cfg.SOLVER.IMS_PER_BATCH = 16  # images an iteration, over all processes
    cfg.SOLVER.CLIP_GRADIENTS = node()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False  # limit gradients before each step
    # "full_model": norm of all together; "norm": of each parameter; "value": each element.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0  # the limit
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0  # p of the norm
    cfg.SOLVER.AMP = node()
    cfg.SOLVER.AMP.ENABLED = False  # train in bfloat16 where that is safe; twice as fast

    cfg.TEST = node()
    cfg.TEST.EVAL_PERIOD = 0  # iterations; 0: at the end only
    cfg.TEST.DETECTIONS_PER_IMAGE = 100  # most detections that come out

    cfg.OUTPUT_DIR = "./output"  # where a run writes
    cfg.SEED = -1  # negative: another one for each run
    cfg.CUDNN_BENCHMARK = False  # let cuDNN try its algorithms; pays for images of one size

    # What torchvision's detectors do with their predictions.
    cfg.MODEL.TORCHVISION = node()
    cfg.MODEL.TORCHVISION.SCORE_THRESH = 0.05  # least score of a detection
    cfg.MODEL.TORCHVISION.NMS_THRESH = 0.5  # IoU of NMS; 1.0 switches it off

    add_keys(cfg)
    add_onenet_config(cfg)
    return cfg


def load_cfg(config_file: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a run: defaults, then the file with its bases, then the overrides.

    Args:
        config_file: YAML file.
        opts: ``KEY VALUE KEY VALUE ...`` as typed on the command line.

    Returns:
        The checked config, frozen.

    Raises:
        ConfigError: says which file and key is wrong, and what to write.
    """
    cfg = get_cfg()
    cfg.merge_from_file(config_file)
    cfg.merge_from_list(opts)
    check_embedded(cfg)
    choose_weights(cfg)
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    cfg.freeze()
    return cfg


def dump(cfg: Any) -> str:
    """The complete config as YAML that :func:`load_cfg` reads back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(below) for key, below in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return yaml.safe_dump(plain(cfg), sort_keys=True, default_flow_style=None)


def _dotted(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _read_new(value: Any, key: str, source: str) -> Any:
    """A value without a default, for a section that takes any key; text is read as a literal."""
    if isinstance(value, Mapping):
        node = CfgNode(new_allowed=True)
        for name, below in value.items():
            node[str(name)] = _read_new(below, f"{key}.{name}", source)
        return node
    return _literal(value, key, source)


def _literal(value: Any, key: str, source: str) -> Any:
    """``value``, or the Python literal that a text is."""
    read = copy.deepcopy(value)
    if isinstance(value, str):
        try:
            read = literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            read = value
    if not fits_64_bits(read):
        raise ConfigError(f"{source}: {key} has a number of more than 64 bits; expected 64 at most")
    return read


def _coerce(value: Any, default: Any, key: str, source: str) -> Any:
    """``value`` in the type of ``default``; text is read as a Python literal first, as in yacs.

    That also reads ``1e-4`` and ``(240,)``, which YAML takes for text.
    """
    if isinstance(value, Mapping):
        raise ConfigError(
            f"{source}: {key} holds a value, but {', '.join(map(str, value))} is set below it"
        )
    wanted = type(default)
    read = _literal(value, key, source)
    if wanted is str and isinstance(value, str):
        return read if isinstance(read, str) else value
    if wanted is float and type(read) is int:
        return float(read)
    if wanted in (list, tuple) and type(read) in (list, tuple):
        return wanted(read)
    if type(read) is wanted:
        return read
    expected = {
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "text (in quotes)",
        list: "a list, such as [1, 2]",
        tuple: "a list, such as [1, 2] or (1,)",
    }[wanted]
    raise ConfigError(f"{source}: {key} is {value!r}; expected {expected}")
