"""What a detector finds in one image; needs NumPy and Pillow, not torch."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from onenet.data.images import read_image
from onenet.errors import OneNetError

if TYPE_CHECKING:
    import supervision

_WIDEST = 1024  # px of a picture in a notebook
_MOST_ROWS = 100  # of a table in a notebook


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """The objects found in one image, best score first.

    Attributes:
        boxes: (n, 4) float32 xyxy px of the image.
        scores: (n,) float32 in [0, 1].
        labels: (n,) int64 in [0, K).
        class_names: name of each of the K labels.
        parts: (n,) int64, with tiles how many boxes, each of another tile, became this one.
        size: (H, W) px of the image.
        path: the image's file; ``None`` if the image was an array or a Pillow image.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    parts: np.ndarray = field(repr=False)
    class_names: Sequence[str] = field(repr=False)
    size: tuple[int, int]
    path: Path | None = None
    _pixels: np.ndarray | None = field(default=None, repr=False)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label] for label in self.labels]

    @property
    def merged(self) -> int:
        """With tiles, how many boxes went into these across seams."""
        return int((self.parts - 1).sum())

    @property
    def image(self) -> np.ndarray:
        """The image, (H, W, 3) uint8 RGB; read again if it is a file's.

        Raises:
            UnreadableImageError: the file is gone or damaged.
        """
        return read_image(str(self.path), "RGB") if self._pixels is None else self._pixels

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: Any) -> ImageDetections:
        """The detections that a mask, an index array or a slice selects."""
        chosen = {
            name: getattr(self, name)[keep] for name in ("boxes", "scores", "labels", "parts")
        }
        if chosen["scores"].ndim == 0:  # a single number
            return self[[int(keep)]]
        return replace(self, **chosen)

    def __repr__(self) -> str:
        height, width = self.size
        where = f"{self.path}, " if self.path else ""
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        many = "detection" if len(self) == 1 else "detections"
        return f"<{len(self)} {many} in {where}{width} × {height} px{f': {counts}' * bool(counts)}>"

    def draw(self) -> Image.Image:
        """The image with boxes, class names and scores; a small image is enlarged.

        Returns:
            A Pillow image, RGB; ``numpy.asarray`` makes an array of it.
        """
        from onenet.visualization.boxes import draw_boxes, enlargement

        image = self.image
        scale = enlargement(image)
        drawn = draw_boxes(
            image, self.boxes, self.labels, self.class_names, self.scores, scale=scale
        )
        return Image.fromarray(drawn)

    def to_supervision(self) -> supervision.Detections:
        """The detections for Roboflow's ``supervision``, with ``class_name`` in ``data``."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_coco(
        self, image_id: int = 0, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """The detections as entries of COCO's results format; a box is x, y, width, height.

        Args:
            image_id: of this image in its annotation file.
            category_ids: the annotation file's id of each label; ``None``: 1, 2, ….

        Raises:
            OneNetError: there are fewer ids than classes.
        """
        ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
        if len(ids) != len(self.class_names):
            raise OneNetError(
                f"category_ids has {len(ids)} entries; expected {len(self.class_names)}, one for "
                "each class"
            )
        boxes = np.concatenate((self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]), axis=1)
        rows = zip(self.labels.tolist(), boxes.tolist(), self.scores.tolist(), strict=True)
        return [
            {"image_id": image_id, "category_id": int(ids[label]), "bbox": box, "score": score}
            for label, box, score in rows
        ]

    def _repr_png_(self) -> bytes:
        picture = self.draw()
        picture.thumbnail((_WIDEST, _WIDEST))
        content = io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue()

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self._repr_png_()).decode()
        found = zip(self.names, self.scores, self.boxes.round().astype(int), strict=True)
        rows = [
            f"<tr><td>{html.escape(name)}</td><td>{score:.2f}</td>"
            f"<td>{', '.join(map(str, box))}</td></tr>"
            for name, score, box in list(found)[:_MOST_ROWS]
        ]
        more = f"<p>… {len(self) - _MOST_ROWS} more</p>" if len(self) > _MOST_ROWS else ""
        return (
            f'<img src="data:image/png;base64,{picture}"/>'
            f"<details><summary>{html.escape(repr(self)[1:-1])}</summary>"
            "<table><tr><th>class</th><th>score</th><th>x1, y1, x2, y2 (px)</th></tr>"
            f"{''.join(rows)}</table>{more}</details>"
        )
