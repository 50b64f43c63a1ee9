"""Loggers that send to a tracker of experiments; their packages are extras, imported when named."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

import numpy as np

from .run_logger import LoggedRun, RunLogger, register

_AT_ONCE = 100  # values that MLflow takes in one request


@register("wandb")
class WandB(RunLogger):
    """Weights & Biases, under the run's own id, with ``iteration`` as the axis of its curves.

    ``WANDB_MODE``, ``WANDB_PROJECT`` (``onenet``) and its other variables work as usual.
    """

    needs = "wandb"

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        self.image = wandb.Image
        self.remote = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "onenet",
            id=run.id,
            name=run.folder.resolve().name,
            dir=str(run.folder),
            config=dict(run.config),
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        # Not its own counter of steps, which refuses those that a resumed run repeats.
        self.remote.define_metric("iteration")
        self.remote.define_metric("*", step_metric="iteration")

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        self.remote.log({"iteration": iteration, **values})

    def pictures(self, iteration: int, images: Mapping[str, np.ndarray]) -> None:
        found = {name: self.image(image) for name, image in images.items()}
        self.remote.log({"iteration": iteration, **found})

    def close(self, *, finished: bool) -> None:
        self.remote.finish(exit_code=0 if finished else 1)


@register("mlflow")
class MLflow(RunLogger):
    """MLflow, where ``MLFLOW_TRACKING_URI`` says, in the experiment ``MLFLOW_EXPERIMENT_NAME``.

    A resumed run finds its entry by the tag ``onenet_run``. The parameters are those of its first
    start, which MLflow never changes; ``config.yaml`` among the artifacts is that of the last.
    """

    needs = "mlflow"

    def __init__(self, run: LoggedRun) -> None:
        # A server that does not answer must not hold up the training for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.client, self.metric = MlflowClient(), Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "onenet"
        known = self.client.get_experiment_by_name(name)
        place = known.experiment_id if known else self.client.create_experiment(name)
        found = self.client.search_runs([place], f"tags.`onenet_run` = '{run.id}'", max_results=1)
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            tags = {"onenet_run": run.id}
            made = self.client.create_run(place, tags=tags, run_name=run.folder.resolve().name)
            self.id = made.info.run_id
            parameters = [Param(_plain(k), str(v)[:6000]) for k, v in run.config.items()]
            for start in range(0, len(parameters), _AT_ONCE):
                part = parameters[start : start + _AT_ONCE]
                self.client.log_batch(self.id, params=part)
        self.client.log_text(self.id, run.text, "config.yaml")

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [
            self.metric(_plain(name), float(value), now, iteration)
            for name, value in values.items()
            if np.isfinite(value)
        ]
        for start in range(0, len(metrics), _AT_ONCE):
            self.client.log_batch(self.id, metrics=metrics[start : start + _AT_ONCE])

    def pictures(self, iteration: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            self.client.log_image(self.id, image, key=_plain(name), step=iteration)

    def close(self, *, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "FAILED")


def _plain(name: str) -> str:
    """A name with the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)
