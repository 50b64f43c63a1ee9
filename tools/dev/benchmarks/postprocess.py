"""From logits to the best 100: two stages against a top-k per class and a top-k of all pairs."""

from __future__ import annotations

import torch
from _shared.timing import Comparison
from torch import Tensor

from benchmarks.criterion import make_predictions
from benchmarks.options import Options
from onenet.inference.postprocess import detect

PER_CLASS, FLAT, OURS = "top-k of every class", "flat top-k", "OneNet, two stages"
K = 100


def per_class_top_k(logits: Tensor, boxes: Tensor, k: int) -> list[tuple[Tensor, ...]]:
    """The original's method: the best k scores of each class, then the best k of those.

    Args:
        logits: (B, K, N), so that the scores of a class are contiguous.
        boxes: (B, N, 4).
        k: number of detections.

    Returns:
        For each image boxes, scores and labels, best first.
    """
    found = []
    for scores, of_image in zip(logits.sigmoid(), boxes, strict=True):
        best, samples = scores.topk(min(k, scores.shape[1]), dim=1)
        top, flat = best.flatten().topk(min(k, best.numel()))
        found.append((of_image[samples.flatten()[flat]], top, flat // best.shape[1]))
    return found


def flat_top_k(logits: Tensor, boxes: Tensor, k: int) -> list[tuple[Tensor, ...]]:
    """The best k of all pairs at once: as :func:`per_class_top_k`, but ``logits`` is (B, N, K)."""
    classes = logits.shape[2]
    best, flat = logits.flatten(1).topk(min(k, logits[0].numel()), dim=1)
    samples = torch.div(flat, classes, rounding_mode="floor")
    chosen = boxes.gather(1, samples[..., None].expand(-1, -1, 4))
    return list(zip(chosen, best.sigmoid(), flat % classes, strict=True))


@torch.inference_mode()
def run(options: Options) -> list[Comparison]:
    """Time batch 8 with 80 classes, each method with the memory layout that suits it best."""
    images = 2 if options.quick else 8
    predictions = make_predictions(images, options.size, 80, options.device)
    by_class = predictions.logits.transpose(1, 2).contiguous()
    timings = options.time(
        {
            PER_CLASS: lambda watch: per_class_top_k(by_class, predictions.boxes, K),
            FLAT: lambda watch: flat_top_k(predictions.logits, predictions.boxes, K),
            OURS: lambda watch: detect(predictions, K),
        }
    )
    height, width = options.size
    return [
        Comparison(
            title=f"post-process: {images} images of {height}×{width}, 80 classes, best {K}, "
            f"{options.device}",
            timings=timings,
            baseline=PER_CLASS,
            images=images,
        )
    ]
