"""Every config key of OneNet that Detectron2 does not have, for both engines.

What the values may be stands in :mod:`onenet.config.rules`. The embedded engine's copy of
Detectron2's keys is in :mod:`onenet.lightning.config`.
"""

from __future__ import annotations

from typing import Any


def add_onenet_config(cfg: Any) -> None:
    """Add the keys, with the original's defaults, to a Detectron2-style config.

    Args:
        cfg: a yacs ``CfgNode`` (Detectron2's, or ``onenet.lightning.config.get_cfg()``'s); changed
            in place.
    """
    node = type(cfg)
    c = cfg.MODEL.OneNet = node()
    # Number of foreground classes.
    c.NUM_CLASSES = 80
    # Class-wise NMS at IoU 0.5 after the top-k; for ablation only.
    c.NMS = False
    # "CenterNet", "FCOS", "RetinaNet", or a name in onenet.HEAD_REGISTRY.
    c.HEAD = "CenterNet"
    # Feature maps that the head reads, finest first.
    c.IN_FEATURES = ["res2", "res3", "res4", "res5"]

    # The head "CenterNet".
    # Between the last two convolutions: "relu" or "gelu".
    c.ACTIVATION = "relu"
    # Channels of res5 and of the three upsampling stages.
    c.DECONV_CHANNEL = [2048, 256, 128, 64]
    # Kernel sizes of the three transposed convolutions: 2, 3 or 4.
    c.DECONV_KERNEL = [4, 4, 4]
    # Deformable instead of plain convolutions in the upsampling stages.
    c.DCN = True
    # Deformable convolution v2 (with a mask) instead of v1.
    c.MODULATE_DEFORM = True
    # Multi-head training (section 4.1 of the paper's first version, where it is 3): so many stages
    # in a row are trained, and share the class and the box convolution.
    c.NUM_HEADS = 1
    # How many of them run at inference, 1 to NUM_HEADS; the last one gives the detections.
    c.INFERENCE_HEADS = 1

    # The heads "FCOS" and "RetinaNet".
    # Convolutions in each of the two towers, and their channels.
    c.NUM_CONV = 4
    c.CONV_CHANNELS = 256
    # Normalisation of FCOS's towers: "GN" or "BN".
    c.CONV_NORM = "GN"
    # FCOS with predefined location cost, and the matchers "points" and "centre": object sizes in px
    # that each level answers for.
    c.OBJECT_SIZES_OF_INTEREST = [
        [-1, 64],
        [64, 128],
        [128, 256],
        [256, 512],
        [512, float("inf")],
    ]

    # Assignment.
    # "minimum": the cheapest sample of every target (the paper); "hungarian": one-to-one; "poto":
    # one-to-one by p^0.2 * IoU^0.8 within the box (DeFCN). Rules of other detectors:
    # "iou_threshold" (RetinaNet), "points" (FCOS), "centre" (CenterNet), "atss", "simota" (YOLOX),
    # "alignment" (TOOD), see RULES and AUX. Or another name in onenet.MATCHER_REGISTRY.
    c.MATCHER = "minimum"
    # "predicted": cost of the predicted boxes; "predefined": of the grid points or anchors; or a
    # name in onenet.LOCATION_COST_REGISTRY.
    c.LOCATION_COST = "predicted"
    c.CLASS_COST = 2.0
    c.GIOU_COST = 2.0
    c.L1_COST = 5.0

    # Of the rules of other detectors; of "points", "alignment" and "topk" in AUX.
    rules = c.RULES = node()
    # "iou_threshold": below the first IoU an anchor is negative, from the second on positive, and
    # ignored between.
    rules.IOU_THRESHOLDS = [0.4, 0.5]
    # "iou_threshold": an object's best anchors are positive, too, however low their IoU.
    rules.LOW_QUALITY = True
    # "iou_threshold" and "atss": for a head without anchors, the side in strides of the square
    # around a grid point that stands for one.
    rules.ANCHOR_SCALE = 8.0
    # "atss": candidates of an object on each level.
    rules.ATSS_TOPK = 9
    # "simota": strides around the centre that count as the object's middle; how many of the best
    # IoUs are added up; the weight of -log IoU in the cost.
    rules.SIMOTA_RADIUS = 2.5
    rules.SIMOTA_TOPK = 10
    rules.SIMOTA_IOU_COST = 3.0

    # "OneNet": the losses below; or a name in onenet.CRITERION_REGISTRY.
    c.CRITERION = "OneNet"
    # Loss weights.
    c.CLASS_WEIGHT = 2.0
    c.GIOU_WEIGHT = 2.0
    c.L1_WEIGHT = 5.0

    # Focal loss and cost.
    c.ALPHA = 0.25
    c.GAMMA = 2.0
    # The class probability that an untrained head starts from.
    c.PRIOR_PROB = 0.01
    # How a head's weights start: "xavier", the original's; "calm": the class layer's alone have
    # standard deviation 0.01, so that the first loss does not depend on the seed.
    c.INIT = "xavier"
    # What a positive's score learns: "hard": 1; "iou": IoU^TARGET_GAMMA of its box (DEIM).
    c.CLASS_TARGET = "hard"
    # With "iou". The share of the training over which the target changes from 1 to that.
    c.TARGET_GAMMA = 1.5
    c.TARGET_RAMP = 0.25

    # A second predictor on the head's features, in training only, with many positives an object
    # (onenet.heads.branch). It is neither in model_final.pth nor in what is deployed.
    aux = c.AUX = node()
    aux.ENABLED = False
    # "alignment": the TOPK samples of greatest p^ALPHA * IoU^BETA within the box (TOOD); "topk":
    # the TOPK cheapest within it, by the costs above; "points": those in the middle of the box,
    # RADIUS strides around its centre (FCOS); or another name in onenet.MATCHER_REGISTRY. The four
    # keys also hold for MODEL.OneNet.MATCHER with these names.
    aux.MATCHER = "alignment"
    aux.TOPK = 8
    aux.ALPHA = 0.5
    aux.BETA = 3.0
    aux.RADIUS = 1.5
    # "hard": 1; "soft": p * IoU^6 in parts of the object's best, times its best IoU (DDQ).
    aux.CLASS_TARGET = "hard"
    # The weight of the branch's losses, and the shares of the training, [from, to], between which
    # it falls linearly to 0; []: it is constant.
    aux.WEIGHT = 1.0
    aux.FALL = []
    # The branch predicts boxes with the head's own layer, on features of its own.
    aux.SHARE_BOXES = True
    # The branch's losses do not train the features that it shares with the head.
    aux.DETACH = False
    # The share of the gradient of the head's own losses that trains those features: 1 all; 0 none,
    # as in YOLOv10.
    aux.MAIN_GRADIENT = 1.0

    # The meta-architecture CenterNet. Of MODEL.OneNet it reads NUM_CLASSES, IN_FEATURES,
    # DECONV_CHANNEL, DECONV_KERNEL, DCN, MODULATE_DEFORM, PRIOR_PROB and NMS.
    c = cfg.MODEL.CenterNet = node()
    # Channels between the two convolutions of each branch.
    c.CHANNELS = 64
    # Side of the neighbourhood, in cells, in which only the best score is kept; 1 keeps all.
    c.PEAK_KERNEL = 3
    # Loss weights; the heat map's is 1.
    c.SIZE_WEIGHT = 0.1
    c.OFFSET_WEIGHT = 1.0

    # The meta-architecture SparseRCNN. Of MODEL.OneNet it reads NUM_CLASSES, IN_FEATURES, NMS,
    # PRIOR_PROB, INIT, and all of assignment and losses; MATCHER is "hungarian" or "minimum".
    c = cfg.MODEL.SparseRCNN = node()
    # Learnt proposals, each a box and a vector of MODEL.FPN.OUT_CHANNELS numbers.
    c.NUM_PROPOSALS = 100
    # Stages in a row; all are trained, and the last one gives the detections.
    c.NUM_HEADS = 6
    # Heads of the attention between proposals; a divisor of MODEL.FPN.OUT_CHANNELS.
    c.NHEADS = 8
    # Channels within the feed-forward network.
    c.DIM_FEEDFORWARD = 2048
    # Channels between the two layers that are made of a proposal's vector.
    c.DIM_DYNAMIC = 64

    # The meta-architecture YOLOv1. Of MODEL.OneNet it reads NUM_CLASSES and IN_FEATURES, one map.
    c = cfg.MODEL.YOLOv1 = node()
    # Side of the square, px, that every image is stretched to after INPUT's resize; a multiple of
    # the map's stride.
    c.INPUT_SIZE = 448
    # Cells along a side (S), and boxes of a cell (B). A cell finds one class.
    c.GRID = 7
    c.BOXES = 2
    # Channels of the four convolutions, and outputs of the first fully connected layer.
    c.CHANNELS = 1024
    c.HIDDEN = 4096
    # The share of that layer's outputs that training leaves out.
    c.DROPOUT = 0.5
    # The weights of centres and sizes, and of the confidence of boxes without an object; those of
    # the others are 1.
    c.COORD_WEIGHT = 5.0
    c.NOOBJ_WEIGHT = 0.5
    # IoU of its class-wise NMS; 1 keeps all boxes.
    c.NMS_THRESH = 0.5

    # MODEL.BACKBONE.NAME "build_mobilenetv3_backbone", or with a pyramid up to p7
    # "build_retinanet_mobilenetv3_fpn_backbone".
    c = cfg.MODEL.MOBILENETV3 = node()
    # "small" or "large".
    c.SIZE = "large"
    # Factor of every layer's channels; torchvision's weights are for 1.0.
    c.WIDTH = 1.0
    # "BN", "FrozenBN" or "SyncBN".
    c.NORM = "BN"

    # MODEL.BACKBONE.NAME "build_timm_backbone", or with a pyramid up to p7
    # "build_retinanet_timm_fpn_backbone", or up to a pooled p6 "build_timm_fpn_backbone".
    c = cfg.MODEL.TIMM = node()
    # A model of timm that gives maps of stride 4, 8, 16 and 32 (res2 … res5), with or without the
    # tag of its weights: "convnext_tiny", "resnet18.a1_in1k".
    c.NAME = ""
    # Start from the weights that timm publishes, where MODEL.WEIGHTS is "".
    c.PRETRAINED = False
    # timm's numbers of the maps; []: all of stride 4 to 32.
    c.OUT_INDICES = []
    # Of batch norms: "BN" as they are, "FrozenBN" or "SyncBN".
    c.NORM = "BN"

    # Data.
    # Augmentations in order, before flip, crop and resize, such as ["mosaic(probability=0.3)",
    # "flip(vertical)"]: names of onenet.AUGMENTATION_REGISTRY, see docs/augmentation.md. A flip of
    # that direction or a crop in the list replaces RANDOM_FLIP or CROP.
    cfg.INPUT.AUGMENTATIONS = []
    # The share of the training at its end that does without the strong ones, mosaic and mixup.
    cfg.INPUT.AUGMENTATIONS_OFF = 0.15
    # Train on the next image in place of one that cannot be read, and list those at the end.
    cfg.DATALOADER.SKIP_UNREADABLE = False

    # Training.
    # "ADAMW" or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # The backbone's learning rate as a multiple of BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Parts in which each process computes its share of a batch: the gradient is the same, but for
    # batch norms, which see one part at a time, and matchers that give an object many samples,
    # whose losses are over the positives of a part; and it takes less memory.
    cfg.SOLVER.ACCUMULATE = 1
    # How many of the newest checkpoints of a run to keep; 0 keeps all.
    cfg.SOLVER.CHECKPOINT_KEEP = 0
    # How many iterations in a row to skip when a loss or gradient is NaN or infinite; a skipped one
    # leaves the model unchanged. One more stops training; 0 stops at once.
    cfg.SOLVER.SKIP_NONFINITE = 0
    cfg.MODEL_EMA = node()
    # Average the weights over all iterations, see onenet.training.ema; evaluate and save the
    # average.
    cfg.MODEL_EMA.ENABLED = False
    # The share of the average that an iteration keeps, after warm-up; from 0 to below 1.
    cfg.MODEL_EMA.DECAY = 0.9998
    # So many evaluations in a row without gain in TEST.BEST_METRIC end training; 0: never.
    cfg.SOLVER.EARLY_STOP = 0
    # Features of your own around the iterations, names of a file of --import (docs/hooks.md).
    cfg.HOOKS = []
    # Where curves go, beside metrics.json: "tensorboard", "csv", "wandb", "mlflow", or a name in
    # onenet.LOGGER_REGISTRY.
    cfg.LOGGERS = ["tensorboard"]
    # Deterministic algorithms where CUDA has them, and a warning where it does not; slower.
    cfg.CUDNN_DETERMINISTIC = False

    # Inference.
    # Fold batch norms into convolutions and lay maps out as channels_last.
    cfg.TEST.FUSE = True
    # "float32", "bfloat16", or on CUDA "float16".
    cfg.TEST.PRECISION = "float32"
    # Compile every batch size when it first occurs (CUDA graphs on CUDA): for images of one size or
    # of a few.
    cfg.TEST.COMPILE = False
    # On CUDA: replay every batch size as a CUDA graph, uncompiled; for small batches, whose kernels
    # are shorter than their launches.
    cfg.TEST.CUDA_GRAPHS = False
    # Most images that go through the network together on each process, all of one padded size; 0:
    # 8 on CUDA and 1 on the CPU, which is faster while its maps fit the cache.
    cfg.TEST.IMS_PER_BATCH = 0
    # Detect in tiles of this side in px of the image, each resized as an image would be, and merge
    # the boxes of two tiles that are one object; 0: in the whole image.
    cfg.TEST.TILES = 0
    # The share of a tile's side that neighbours have in common, at least.
    cfg.TEST.TILE_OVERLAP = 0.2
    # "coco": AP; "crowdhuman": AP, mMR and recall of one class, crowd regions ignored; or a name in
    # onenet.EVALUATOR_REGISTRY.
    cfg.TEST.EVALUATOR = "coco"
    # A metric that evaluations print, such as "bbox/AP": the weights of the best evaluation stay as
    # model_best.pth; "": they do not.
    cfg.TEST.BEST_METRIC = ""
    # Compute the training losses on the test sets, too, at every evaluation of a training.
    cfg.TEST.LOSS = False

    # Keys of the original's code base that have another name or no use here.
    cfg.register_renamed_key(
        "MODEL.OneNet.PRE_DEFINE",
        "MODEL.OneNet.LOCATION_COST",
        message="write 'predefined' for True and 'predicted' for False",
    )
    cfg.register_deprecated_key("MODEL.OneNet.FEATURES_STRIDE")  # the backbone knows its strides
