"""The page's tabs, in Gradio: what is shown where, and what happens on a click."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr
import numpy as np

from onenet.api.detections import ImageDetections
from onenet.api.videos import VIDEO_SUFFIX, Video, Writer
from onenet.data.images import read_image
from onenet.errors import OneNetError, UnreadableImageError
from onenet.visualization.paper_figures import draw_assignments

from .models import Models
from .pictures import ASSIGNED, FOUND, assignment_rows, draw_duplicates, rows_of, summary
from .truth import Truth

TITLE = "OneNet: one box an object, without NMS"
_HOUR = 3600  # s that uploads and results are kept
_SECONDS = 0.3  # between two pictures of a camera
_PROGRESS = gr.Progress()  # as an argument's default, it asks Gradio for a bar
# One at a time: a second prediction beside the first would only slow both.
_QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}


def build_page(models: Models, truth: Truth | None, threshold: float) -> gr.Blocks:
    """The page, ready to be launched.

    Args:
        models: the detectors to choose from.
        truth: images with ground truth; ``None``: the page has no tab of assignments.
        threshold: lowest score that is shown at the start.
    """
    with gr.Blocks(title="OneNet", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as page:
        gr.Markdown(f"## {TITLE}")
        with gr.Tab("Pictures"):
            _pictures(models, truth, threshold)
        with gr.Tab("Videos and camera"):
            _videos(models, threshold)
        with gr.Tab("Two models"):
            _two_models(models, truth, threshold)
        if truth is not None:
            with gr.Tab("Which sample is an object's"):
                _assignments(models, truth)
    return page


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with errors that users can mend shown on the page as they are."""

    @functools.wraps(function)
    def call(*values: Any, **options: Any) -> Any:
        try:
            return function(*values, **options)
        except OneNetError as error:
            # Gradio takes HTML, and file names come from others.
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    return call


def _model(models: Models, label: str = "Model", number: int = 0) -> gr.Dropdown:
    chosen = models.names[min(number, len(models.names) - 1)]
    return gr.Dropdown(models.names, value=chosen, label=label)


def _threshold(value: float) -> gr.Slider:
    return gr.Slider(0, 1, value, step=0.01, label="Lowest score that is shown")


def _picture() -> gr.Image:
    picture = gr.Image(label="Picture", type="filepath", format="png", height=420)
    # The file as it was sent, which lies in Gradio's folder of uploads: it has checked this before.
    # read() turns it upright, and says in words what is wrong with it.
    picture.preprocess = lambda payload: payload and payload.path
    return picture


def read(file: str) -> np.ndarray:
    """An upload's pixels, (H, W, 3) uint8 RGB.

    Raises:
        UnreadableImageError: it is no image that can be read.
    """
    try:
        return read_image(file, "RGB")
    except UnreadableImageError as error:
        # What it was called, not where Gradio keeps it.
        raise UnreadableImageError(str(error).replace(file, Path(file).name)) from error


def _found(label: str, height: int | None = 420) -> gr.Image:
    # Without the button that would send the picture to a site.
    buttons = ["download", "fullscreen"]
    return gr.Image(label=label, format="png", interactive=False, height=height, buttons=buttons)


def _from_truth(truth: Truth | None, picture: gr.Image) -> None:
    """A row that takes a picture of the data set, if there is one."""
    if truth is None:
        return
    with gr.Row():
        number = _number(truth)
        take = gr.Button("Take this picture", scale=0, min_width=160)
    take.click(told(truth.image), number, picture, api_name=False)


def _number(truth: Truth) -> gr.Slider:
    return gr.Slider(1, max(2, len(truth)), 1, step=1, label=f"Picture of {len(truth)}")


def _pictures(models: Models, truth: Truth | None, threshold: float) -> None:
    with gr.Row():
        model, least = _model(models), _threshold(threshold)
    with gr.Row():
        picture, drawn = _picture(), _found("Detections")
    _from_truth(truth, picture)
    line = gr.Markdown()
    table = gr.Dataframe(headers=FOUND, label="Detections, boxes in px", interactive=False)
    # All detections, so that the slider needs no model.
    kept = gr.State(time_to_live=_HOUR)

    @told
    def detect(name: str, file: str | None, score: float) -> tuple:
        if file is None:
            return None, *show(None, score)
        found = models.load(name).predict(read(file), threshold=0)
        return found, *show(found, score)

    def show(found: ImageDetections | None, score: float) -> tuple:
        if found is None:
            return None, "", []
        found = found[found.scores >= score]
        return np.asarray(found.draw()), summary(found), rows_of(found)

    shown = [drawn, line, table]
    for event in (picture.change, model.change):
        event(detect, [model, picture, least], [kept, *shown], api_name=False, **_QUEUE)
    least.change(
        told(show), [kept, least], shown, show_progress="hidden", api_name=False,
        trigger_mode="always_last",
    )  # fmt: skip


def _videos(models: Models, threshold: float) -> None:
    with gr.Row():
        model, least = _model(models), _threshold(threshold)
    with gr.Row():
        with gr.Column():
            video = gr.Video(label="Video", sources=["upload", "webcam"])
            start = gr.Button("Detect in the video", variant="primary")
        drawn = gr.Video(label="Detections", interactive=False, buttons=["download"])
    with gr.Row():
        camera = gr.Image(sources=["webcam"], streaming=True, label="Camera", height=420)
        live = _found("Detections, live")

    @told
    def detect(name: str, file: str | None, score: float, progress: gr.Progress = _PROGRESS) -> str:
        if file is None:
            raise OneNetError("choose a video first")
        return draw_video(models, name, file, score, progress)

    @told
    def look(name: str, image: np.ndarray | None, score: float) -> np.ndarray | None:
        if image is None:
            return None
        return np.asarray(models.load(name).predict(image, threshold=score).draw())

    start.click(detect, [model, video, least], drawn, api_name=False, **_QUEUE)
    camera.stream(
        look, [model, camera, least], live, stream_every=_SECONDS, show_progress="hidden",
        api_name=False, **_QUEUE,
    )  # fmt: skip


def draw_video(
    models: Models, name: str, file: str, score: float, progress: Callable[..., Any]
) -> str:
    """Detect in a video; returns the drawn one.

    Raises:
        OneNetError: OpenCV cannot read it, or it ends early.
    """
    detector, video, writer = models.load(name), Video(file), None
    # In the folder for temporary files, which Gradio may send, under a name of our own.
    target, count = Path(mkdtemp(prefix="onenet-"), f"detections{VIDEO_SUFFIX}"), 0
    try:
        for count, frame in enumerate(video.frames(), start=1):
            picture = np.asarray(detector.predict(frame, threshold=score).draw())
            if writer is None:
                writer = Writer(target, video.fps, picture.shape[:2])
            writer.write(picture)
            progress((count, video.total), unit="frames")
    finally:
        video.close()
        if writer is not None:
            writer.close()
    if not count:
        raise OneNetError("OpenCV cannot read any frame of the video")
    if lack := video.lack(count):
        gr.Warning(html.escape(lack))
    return str(target)


def _two_models(models: Models, truth: Truth | None, threshold: float) -> None:
    gr.Markdown(
        "A duplicate is what NMS would remove: its box overlaps a better one of the same class by "
        "an IoU above 0.5. OneNet should have none."
    )
    picture = _picture()
    _from_truth(truth, picture)
    least = _threshold(threshold)
    sides = []
    with gr.Row():
        for number in range(2):
            with gr.Column():
                model = _model(models, f"Model {number + 1}", number)
                sides.append((model, _found(f"Detections of model {number + 1}"), gr.Markdown()))

    @told
    def detect(name: str, file: str | None, score: float) -> tuple:
        if file is None:
            return None, ""
        found = models.load(name).predict(read(file), threshold=score)
        return np.asarray(draw_duplicates(found)), summary(found)

    for model, drawn, line in sides:
        gr.on(
            [picture.change, model.change, least.release],
            detect, [model, picture, least], [drawn, line], api_name=False, **_QUEUE,
        )  # fmt: skip


def _assignments(models: Models, truth: Truth) -> None:
    gr.Markdown(
        "In training, each object gets the sample of least cost (a star): class, L1 and GIoU terms "
        "added. A cross marks the sample that its place alone would give it."
    )
    with gr.Row():
        model = gr.Dropdown(models.checkpoints, label="Checkpoint")
        number = _number(truth)
        chosen = gr.Number(1, precision=0, minimum=1, label="Object whose costs are drawn")
        draw = gr.Button("Draw", variant="primary", scale=0, min_width=120)
    drawn = _found("Samples and costs", height=None)
    table = gr.Dataframe(
        headers=ASSIGNED, label="Samples, in px of the model's input, and costs", interactive=False
    )

    @told
    def explain(name: str | None, number: int, chosen: int) -> tuple:
        if name is None:
            raise OneNetError("the page offers exported files alone, which assign nothing")
        found = truth.assign(name, number)
        if not 1 <= chosen <= len(found.targets):
            raise OneNetError(f"there is no object {chosen}: the picture has {len(found.targets)}")
        names, image = truth.class_names, truth.image(number)
        rows = assignment_rows(found, names)
        headers = [*ASSIGNED, *(f"{term} term" for term in found.terms)]
        return (
            draw_assignments([image], [found], names, [chosen - 1]),
            gr.Dataframe(value=rows, headers=headers),
        )

    draw.click(explain, [model, number, chosen], [drawn, table], api_name=False, **_QUEUE)
