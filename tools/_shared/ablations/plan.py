"""The trainings and evaluations of an ablation, with their configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from _shared.ablations.spec import RESERVED, Axes, Change, Spec, slug, words
from _shared.ablations.table import Result, Row
from _shared.training_runs import (
    check_model,
    check_same_config,
    config_loader,
    finished_metrics,
    run_once,
)
from onenet.checkpoints.changes import flat
from onenet.config.rules import check_shares
from onenet.errors import ConfigError

WEIGHTS = "model_final.pth"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a trained model.

    Attributes:
        folder: the run's folder. This is the training's own folder if the evaluation at the end of
            the training is the same.
        opts: all overrides of the config.
    """

    folder: Path
    opts: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """A training for one point of the grid and one seed, and its evaluations.

    Attributes:
        name: labels and seed.
        folder: the training's ``OUTPUT_DIR``.
        opts: all overrides of the config.
        iterations: ``SOLVER.MAX_ITER``.
        evaluations: (without NMS, with NMS) by the evaluation's labels.
    """

    name: str
    folder: Path
    opts: tuple[str, ...]
    iterations: int
    evaluations: Mapping[tuple[str, ...], tuple[Evaluation, Evaluation]]

    @property
    def done(self) -> bool:
        """Whether the training and its evaluations have finished."""
        pairs = self.evaluations.values()
        return all(finished_metrics(one.folder) is not None for pair in pairs for one in pair)

    def result(
        self, labels: tuple[str, ...], failed: bool, positives: float | None = None
    ) -> Result:
        """The results on the disk for the evaluation with these ``labels``, and the positives."""
        without, nms = (finished_metrics(one.folder) for one in self.evaluations[labels])
        return Result(without, nms, failed, positives)


@dataclass(frozen=True)
class Plan:
    """A spec with everything that its runs need.

    Attributes:
        spec: the ablation.
        config: the config file.
        opts: overrides for all runs, with data sets and number of classes.
        engine: ``lightning`` or ``detectron2``.
        gpus: processes per training.
        output: folder of all runs.
        imports: the user's Python files that every run imports first.
    """

    spec: Spec
    config: Path
    opts: tuple[str, ...]
    engine: str
    gpus: int
    output: Path
    imports: tuple[str, ...] = ()

    def trainings(self, seeds: Sequence[int]) -> dict[tuple[str, ...], dict[int, Training]]:
        """All trainings, by labels, then by seed.

        Raises:
            ConfigError: the config refuses an override; the message names the spec and the row.
            RunError: a folder holds a run with another config.
        """
        self.load(self.opts)
        found: dict[tuple[str, ...], dict[int, Training]] = {}
        wanted: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for row in self.spec.rows:
            labels, evaluation = self.split(row)
            wanted.setdefault(labels, []).append(evaluation)
        for labels, evaluations in wanted.items():
            try:
                found[labels] = {seed: self._training(labels, seed, evaluations) for seed in seeds}
                self._check_models(found[labels][seeds[0]])
            except ConfigError as error:
                raise ConfigError(f"{self.spec.path}: {', '.join(labels)}: {error}") from error
        return found

    def split(self, row: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Split a row into the labels of its training and those of its evaluation."""
        return tuple(row[a] for a in self.spec.axes), tuple(row[a] for a in self.spec.evaluate)

    def load(self, opts: Sequence[str]) -> Any:
        """The config with overrides; raises ``ConfigError`` for a key or value that is wrong."""
        cfg = config_loader(self.engine)(self.config, opts)
        check_shares(cfg, self.gpus)
        return cfg

    def _training(
        self, labels: tuple[str, ...], seed: int, evaluations: Sequence[tuple[str, ...]]
    ) -> Training:
        opts = self._changed(self.opts, self.spec.axes, labels)
        off, on = _nms(self.load(opts))
        opts = (*opts, *off, "SEED", str(seed))
        point = "_".join(map(slug, labels))
        folder = self.output / self.spec.path.stem / point / f"seed{seed}"
        cfg = self.load([*opts, "OUTPUT_DIR", str(folder)])
        check_same_config(folder, cfg, config_loader(self.engine))
        pairs = {}
        for chosen in evaluations:
            changed = self._changed(opts, self.spec.evaluate, chosen)
            name = "_".join(["eval", *map(slug, chosen)])
            pairs[chosen] = (
                self._evaluation(folder, opts, changed, name),
                self._evaluation(folder, opts, (*changed, *on), f"{name}_nms"),
            )
        return Training(
            name=", ".join([*labels, f"seed {seed}"]),
            folder=folder,
            opts=opts,
            iterations=cfg.SOLVER.MAX_ITER,
            evaluations=pairs,
        )

    def _check_models(self, training: Training) -> None:
        """Raise ``ConfigError`` unless a training's and its evaluations' models can be built."""
        pairs = training.evaluations.values()
        for opts in {training.opts, *(one.opts for pair in pairs for one in pair)}:
            check_model(self.engine, self.load(opts))

    def _evaluation(
        self, folder: Path, trained: tuple[str, ...], opts: tuple[str, ...], name: str
    ) -> Evaluation:
        if flat(self.load(opts)) == flat(self.load(trained)):
            return Evaluation(folder, trained)
        opts = (*opts, "MODEL.WEIGHTS", str(folder / WEIGHTS))
        cfg = self.load([*opts, "OUTPUT_DIR", str(folder / name)])
        check_same_config(folder / name, cfg, config_loader(self.engine))
        return Evaluation(folder / name, opts)

    def _changed(self, opts: Sequence[str], axes: Axes, labels: Sequence[str]) -> tuple[str, ...]:
        """``opts`` followed by the overrides of one label per axis."""
        changes = [axes[axis][label] for axis, label in zip(axes, labels, strict=True)]
        cfg = self.load(opts) if any(change.factors for change in changes) else None
        return (*opts, *(word for change in changes for word in _words(change, cfg)))

    def run(self, training: Training, call: Callable[..., int]) -> None:
        """Train and evaluate, except for what has finished; ``call``: see ``Children.call``."""
        once = partial(run_once, config=self.config, engine=self.engine)
        imports = [word for file in self.imports for word in ("--import", file)]
        once(
            training.folder,
            opts=training.opts,
            flags=(*imports, "--num-gpus", str(self.gpus)),
            call=partial(call, folder=training.folder),
        )
        for pair in training.evaluations.values():
            for one in pair:
                if one.folder != training.folder:
                    call_there = partial(call, folder=one.folder)
                    flags = (*imports, "--eval-only")
                    once(one.folder, opts=one.opts, flags=flags, call=call_there)

    def rows(
        self,
        trainings: Mapping[tuple[str, ...], Mapping[int, Training]],
        failed: Mapping[str, str],
        speeds: Mapping[int, float],
        positives: Mapping[str, float],
    ) -> list[Row]:
        """The rows of the table so far.

        Args:
            trainings: see :meth:`trainings`.
            failed: error messages by name of the training.
            speeds: images/s by number of the row.
            positives: positives an object by name of the training.
        """
        rows = []
        for number, row in enumerate(self.spec.rows):
            labels, evaluation = self.split(row)
            results = {
                seed: training.result(
                    evaluation, training.name in failed, positives.get(training.name)
                )
                for seed, training in trainings[labels].items()
            }
            rows.append(Row(row, results, speeds.get(number)))
        return rows


def check_opts(spec: Spec, opts: Sequence[str]) -> None:
    """Raise ``ConfigError`` if ``--opts`` sets a key that the spec varies or the program sets."""
    for key in opts[::2]:
        if key in RESERVED:
            raise ConfigError(f"--opts sets {key}, which the program sets itself: {RESERVED[key]}")
        for axis, labels in {**spec.axes, **spec.evaluate}.items():
            if any(key in change.values for change in labels.values()):
                raise ConfigError(
                    f"--opts sets {key}, which the axis {axis} of {spec.path} varies; change it "
                    "there"
                )


def _words(change: Change, cfg: Any) -> list[str]:
    """Overrides as words; factors multiply the values in ``cfg``."""
    scaled = {}
    for key, factor in change.factors.items():
        value = flat(cfg).get(key)
        numbers = value if isinstance(value, list | tuple) else [value]
        if not all(type(number) in (int, float) for number in numbers):
            raise ConfigError(f"scale: {key} is {value!r}; expected a key whose value is a number")
        # Whole numbers, such as iterations and pixels, stay whole.
        product = [
            round(number * factor) if type(number) is int else number * factor for number in numbers
        ]
        scaled[key] = product if isinstance(value, list | tuple) else product[0]
    return words({**change.values, **scaled})


def _nms(cfg: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Overrides that switch NMS off, and overrides that switch it on."""
    if cfg.MODEL.META_ARCHITECTURE.startswith("torchvision."):
        key = "MODEL.TORCHVISION.NMS_THRESH"
        return (key, "1.0"), (key, str(cfg.MODEL.TORCHVISION.NMS_THRESH))
    return ("MODEL.OneNet.NMS", "False"), ("MODEL.OneNet.NMS", "True")
