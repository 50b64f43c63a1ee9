"""Training, evaluating and exporting from Python: the programs' own code, with errors raised."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from onenet.cli import DETECTRON2, choose_engine, training_parser
from onenet.config.imports import import_files
from onenet.config.shipped import find_config
from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.errors import ConfigError
from onenet.training.run_folder import FINAL

from .detector import Detector, load
from .isolation import unchanged_process

if TYPE_CHECKING:
    from .model_files import ModelFiles

Data = str | PathLike[str] | Sequence[str | PathLike[str]]


def train(
    config: str | PathLike[str],
    train: Data | None = None,
    val: Data | None = None,
    *,
    output: str | PathLike[str] | None = None,
    weights: str | PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    engine: str = "auto",
    imports: Sequence[str] = (),
    **overrides: Any,
) -> Detector:
    """Train a detector in this process, as ``onenet train`` does, and load the result.

    Args:
        config: a YAML file, or the name of a config that comes with the package.
        train: the data set to train on, ``ANNOTATIONS.json:IMAGE_FOLDER`` or a known name, or a
            list of them; the number of classes follows it. ``None``: the config's.
        val: the data set to evaluate on, likewise.
        output: folder of the run; ``None``: the config's ``OUTPUT_DIR``.
        weights: to start from; ``None``: the config's.
        resume: continue the run in that folder, if there is one.
        overwrite: start a run in place of the one in that folder.
        engine: "auto", "detectron2" or "lightning"; "auto" takes Detectron2 where it is installed.
        imports: Python files of yours to run first, which register what the config names.
        overrides: config values by the last part of their key in lower case (``max_iter=600``,
            ``base_lr=1e-3``), where several keys have it by the whole key
            (``**{"MODEL.RESNETS.NORM": "BN"}``); also ``batch_size``, ``lr`` and ``workers``.

    Returns:
        The detector of ``model_final.pth``, with the last evaluation in ``metrics``.

    Raises:
        OneNetError: what the command would end with.
        KeyboardInterrupt: the training was interrupted, after an iteration that has been saved.
    """
    config = find_config(config)
    opts = []
    for key, value in (("OUTPUT_DIR", output), ("MODEL.WEIGHTS", weights)):
        opts += [] if value is None else [key, str(value)]
    for key, data in (("DATASETS.TRAIN", train), ("DATASETS.TEST", val)):
        opts += [] if data is None else [key, _names(data)]
    own = _opts(overrides)
    if train is not None and "MODEL.OneNet.NUM_CLASSES" not in own:
        opts += ["MODEL.OneNet.NUM_CLASSES", _count_classes(train)]
    opts += own
    words = ["--resume"] * resume + ["--overwrite"] * overwrite
    import_files(imports)
    package, why = choose_engine(engine)
    metrics = _run(package, why, words, str(config), opts)
    folder = importlib.import_module(f"{package}.config").load_cfg(config, opts).OUTPUT_DIR
    detector = load(Path(folder, FINAL), engine=_engine_name(package), imports=imports)
    detector.metrics = metrics
    return detector


def evaluate(
    files: ModelFiles, data: Data | None, output: str | None, overrides: Mapping[str, Any]
) -> dict[str, float]:
    """See :meth:`onenet.api.detector.Detector.evaluate`."""
    opts = files.all_opts() + ([] if data is None else ["DATASETS.TEST", _names(data)])
    opts += _opts(overrides)
    with TemporaryDirectory(prefix="onenet-") as folder, files.config_file() as config:
        opts += ["OUTPUT_DIR", str(output or folder)]
        return _run(files.engine, files.why, ["--eval-only"], config, opts)


def export(files: ModelFiles, output: str | PathLike[str], options: Mapping[str, Any]) -> Path:
    """See :meth:`onenet.api.detector.Detector.export`."""
    from . import export as program

    parser = program.build_parser()
    parser.error = _refuse  # not SystemExit
    kind = next((k for k, suffix in program.SUFFIXES.items() if str(output).endswith(suffix)), None)
    words = ["--output", str(output), *(["--format", kind] if kind else [])]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] * bool(value) if isinstance(value, bool) else [flag, str(value)]
    with files.config_file() as config, unchanged_process():
        args = parser.parse_args([*words, "--config-file", config])
        args.engine = _engine_name(files.engine)
        args.opts = files.all_opts()
        program.run(args)
    return Path(output).expanduser()


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"export: {message}")


def _run(
    package: str, why: str, words: Sequence[str], config: str, opts: Sequence[Any]
) -> dict[str, float]:
    args = training_parser().parse_args([*words, "--config-file", config])
    args.opts = list(opts)
    with unchanged_process():
        return importlib.import_module(f"{package}.main").run_here(args, why) or {}


def _engine_name(package: str) -> str:
    return "detectron2" if package == DETECTRON2 else "lightning"


def _opts(overrides: Mapping[str, Any]) -> list[Any]:
    # Imported here: the names of the package can be imported without the embedded engine.
    return importlib.import_module("onenet.api.overrides").to_opts(overrides)


def _names(data: Data) -> tuple[str, ...]:
    several = not isinstance(data, str | PathLike)
    return tuple(map(str, data)) if several else (str(data),)


def _count_classes(data: Data) -> int:
    source = find_dataset(_names(data)[0])
    return len(CocoDetection(source, need_annotations=False).class_names)
