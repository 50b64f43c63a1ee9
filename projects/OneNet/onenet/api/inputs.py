"""Finding the images that the command line names, and choosing where their pictures go."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from onenet.data.images import IMAGE_SUFFIXES, WRITTEN_SUFFIXES
from onenet.errors import OneNetError


def find_images(inputs: list[str], output: Path | None = None) -> list[tuple[Path, Path]]:
    """Find the images of files, folders and globs, each once.

    Args:
        inputs: paths and globs.
        output: folder to skip when searching a folder that contains it.

    Returns:
        (path, name) pairs with distinct names. A name is relative to the input's folder, which for
        a glob is its fixed part, or, with several inputs, to their common parent folder.

    Raises:
        OneNetError: an input does not exist or matches no image.
    """
    found: dict[Path, Path] = {}  # image -> folder of the input that it was found by
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_file():
            hits, root = [path], path.parent
        elif path.is_dir():
            hits, root = _images_below(path, output), path
        elif glob.has_magic(text):
            hits = [Path(hit) for hit in sorted(glob.glob(str(path), recursive=True))]
            hits = [hit for hit in hits if _is_image(hit)]
            fixed = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
            root = Path(*path.parts[:fixed])
        else:
            raise OneNetError(f"{text} does not exist; expected an image, a folder or a glob")
        if not hits:
            raise OneNetError(f"{text} matches no image ({', '.join(IMAGE_SUFFIXES)})")
        for hit in hits:
            found.setdefault(hit, root)
    common = Path(os.path.commonpath([root.resolve() for root in found.values()]))
    return [(path, _below(path, common)) for path in found]


def _images_below(folder: Path, output: Path | None) -> list[Path]:
    skip = output.resolve() if output and output.resolve() != folder.resolve() else None
    return [
        path
        for path in sorted(folder.rglob("*"))
        if _is_image(path) and (skip is None or skip not in path.resolve().parents)
    ]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _below(path: Path, folder: Path) -> Path:
    # Resolves the folder only: a linked image keeps the name under which it was found.
    return (path.parent.resolve() / path.name).relative_to(folder)


def picture_paths(images: list[tuple[Path, Path]], output: Path) -> list[Path]:
    """Choose the file for each image's picture.

    Raises:
        OneNetError: ``output`` is one file for several images, or has another kind of suffix.
    """
    one_file = output.suffix.lower() in WRITTEN_SUFFIXES and not output.is_dir()
    if re.fullmatch(r"\.[A-Za-z]+", output.suffix) and not one_file and not output.exists():
        raise OneNetError(
            f"--output {output}: pictures cannot be written as {output.suffix}, only as "
            f"{', '.join(WRITTEN_SUFFIXES)}; for a folder of that name, create it first"
        )
    if one_file and len(images) > 1:
        raise OneNetError(f"--output {output} is one file for {len(images)} images: give a folder")
    if not one_file and output.exists() and not output.is_dir():
        raise OneNetError(f"--output {output} is neither a folder nor a picture")
    if one_file:
        return [output]
    return [
        output / (n if n.suffix.lower() in WRITTEN_SUFFIXES else n.with_name(n.name + ".png"))
        for _, n in images
    ]
