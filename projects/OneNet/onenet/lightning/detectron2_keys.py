"""The config keys of Detectron2 that the embedded engine has no use for."""

from __future__ import annotations

# A name covers everything below it too.
DETECTRON2_ONLY = frozenset(
    {
        "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
        "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN",
        "DATASETS.PROPOSAL_FILES_TEST",
        "DATASETS.PROPOSAL_FILES_TRAIN",
        "FLOAT32_PRECISION",
        "GLOBAL",
        "INPUT.MASK_FORMAT",
        "MODEL.ANCHOR_GENERATOR.ANGLES",
        "MODEL.ANCHOR_GENERATOR.NAME",
        "MODEL.FPN.FUSE_TYPE",
        "MODEL.FPN.NORM",
        "MODEL.KEYPOINT_ON",
        "MODEL.LOAD_PROPOSALS",
        "MODEL.MASK_ON",
        "MODEL.PANOPTIC_FPN",
        "MODEL.PROPOSAL_GENERATOR",
        "MODEL.RESNETS.DEFORM_MODULATED",
        "MODEL.RESNETS.DEFORM_NUM_GROUPS",
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
        "MODEL.RESNETS.NUM_GROUPS",
        "MODEL.RESNETS.RES5_DILATION",
        "MODEL.RESNETS.STEM_OUT_CHANNELS",
        "MODEL.RESNETS.WIDTH_PER_GROUP",
        "MODEL.RETINANET",
        "MODEL.ROI_BOX_CASCADE_HEAD",
        "MODEL.ROI_BOX_HEAD",
        "MODEL.ROI_HEADS",
        "MODEL.ROI_KEYPOINT_HEAD",
        "MODEL.ROI_MASK_HEAD",
        "MODEL.RPN",
        "MODEL.SEM_SEG_HEAD",
        "SOLVER.BIAS_LR_FACTOR",
        "SOLVER.NESTEROV",
        "SOLVER.NUM_DECAYS",
        "SOLVER.REFERENCE_WORLD_SIZE",
        "SOLVER.RESCALE_INTERVAL",
        "SOLVER.WEIGHT_DECAY_BIAS",
        "SOLVER.WEIGHT_DECAY_NORM",
        "TEST.AUG",
        "TEST.EXPECTED_RESULTS",
        "TEST.KEYPOINT_OKS_SIGMAS",
        "TEST.PRECISE_BN",
        "VIS_PERIOD",
    }
)


def detectron2_only(key: str) -> bool:
    """Whether Detectron2 honours the dotted ``key`` and the embedded engine does not."""
    parts = key.split(".")
    return any(".".join(parts[:n]) in DETECTRON2_ONLY for n in range(1, len(parts) + 1))
