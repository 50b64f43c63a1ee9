"""Download trained weights from the release of OneNet's authors, and say how to use them.

    python tools/download_weights.py                # lists the files
    python tools/download_weights.py res50          # downloads the one whose name holds "res50"

The authors publish weights trained on COCO (80 classes) as release v0.1 of PeizeSun/OneNet. The
program finds out to which config a file belongs by the names and shapes of its parameters, and
prints the commands that detect objects in your pictures and evaluate on the config's test set.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from _shared.recognition import Recognised, recognise
from _shared.releases import API, Asset, choose, read_release
from tabulate import tabulate

from onenet.checkpoints.download import fetch
from onenet.checkpoints.web import shown
from onenet.cli import run_program
from onenet.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "projects" / "OneNet" / "configs"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Download trained weights from the release of OneNet's authors, and print the "
        "commands that use them. Without NAME, list the files. GITHUB_TOKEN in the environment "
        "raises GitHub's limit of requests."
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a file of the release, or a part of its name"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("weights"),
        metavar="DIR",
        help="folder for the file (default: %(default)s)",
    )
    parser.add_argument(
        "--api",
        default=API,
        metavar="URL",
        help="another release in GitHub's API, or a mirror that answers in its form (default: "
        "%(default)s)",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    assets = read_release(args.api)
    if args.name is None:
        return print(table(assets))
    asset = choose(assets, args.name)
    folder = args.output.expanduser()
    print(f"{asset.name} ({megabytes(asset.size)} MB) from {shown(asset.url)}", flush=True)
    path = fetch(asset.url, folder, size=asset.size, sha256=asset.sha256)
    checked = "size and SHA-256" if asset.sha256 else "size; GitHub gives no SHA-256"
    print(f"{path} is whole (checked: {checked})")
    try:
        found = recognise(path, configs())
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is kept, but fits no config in {here(CONFIGS)}, so that neither demo.py nor "
            f"train_net.py can use it. {error}"
        ) from error
    print(commands(path, found))


def configs() -> list[Path]:
    """OneNet's configs, the plainest names first."""
    return sorted(CONFIGS.glob("onenet.*.yaml"), key=lambda path: (len(path.name), path.name))


def table(assets: list[Asset]) -> str:
    if not assets:
        return "The release has no files"
    rows = [(a.name, megabytes(a.size), "yes" if a.sha256 else "no") for a in assets]
    columns = ("file", "MB", "SHA-256 known")
    listed = tabulate(rows, columns, colalign=("left", "right", "left"), disable_numparse=True)
    return f"{listed}\n\nDownload one: python {here(Path(__file__))} NAME (a part of it is enough)"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def commands(path: Path, found: Recognised) -> str:
    """What to type to use a checkpoint."""
    config = shlex.quote(here(found.config))
    opts = " ".join([*found.opts, "MODEL.WEIGHTS", shlex.quote(str(path))])
    return f"""\
Its parameters are those of {here(found.config)}, with {found.classes} classes.

Detect objects in your pictures:

    python {here(ROOT / "demo" / "demo.py")} --config-file {config} \\
        --input path/to/images --output detections --opts {opts}

Evaluate on {", ".join(found.datasets)}:

    python {here(ROOT / "projects" / "OneNet" / "train_net.py")} --config-file {config} \\
        --eval-only {opts}"""


def here(path: Path) -> str:
    """A path of the project as one types it: relative where that is shorter."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
