"""onenet/files.py: files that Windows guards, and outputs that would replace inputs."""

from __future__ import annotations

import os
import stat
import time

import pytest

from onenet.errors import OneNetError, WriteError
from onenet.files import check_outputs, remove_partial_files, write_whole


def refused(outputs, inputs=()) -> str:
    with pytest.raises(OneNetError) as error:
        check_outputs(outputs, inputs)
    return str(error.value)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.png"
    path.write_bytes(b"pixels")
    return path


@pytest.mark.parametrize(
    "spelling", ["same", "relative", "dots", "link", "folder-link", "hard-link", "text"]
)
def test_an_output_that_is_an_input_is_refused_in_every_spelling(
    tmp_path, monkeypatch, source, spelling
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.png").symlink_to(source)
    (tmp_path / "folder").symlink_to(source.parent)
    os.link(source, tmp_path / "hard.png")
    path = {
        "same": source,
        "relative": "in/a.png",
        "dots": tmp_path / "in" / ".." / "in" / "a.png",
        "link": tmp_path / "link.png",
        "folder-link": tmp_path / "folder" / "a.png",
        "hard-link": tmp_path / "hard.png",
        "text": str(source),
    }[spelling]
    assert f"overwrite the input {source}" in refused([tmp_path / "b.png", path], [source])
    check_outputs([tmp_path / "b.png"], [source])


def test_two_outputs_that_are_one_file_are_refused(tmp_path, source):
    new = tmp_path / "new"
    assert "one file" in refused([new / "a.jpg", new / "x" / ".." / "a.jpg"])
    (tmp_path / "b.jpg").symlink_to(tmp_path / "c.jpg")  # leads to no file yet
    assert "b.jpg and" in refused([tmp_path / "b.jpg", tmp_path / "c.jpg"])
    check_outputs([new / "a.jpg", new / "b" / "a.jpg", tmp_path / "a.jpg"], [source])


def test_a_missing_input_keeps_its_name(tmp_path):
    """Such as an image that a data set lists and that is still to be copied there."""
    assert "overwrite" in refused([tmp_path / "x" / "a.jpg"], [tmp_path / "x" / "a.jpg"])


def test_names_that_differ_in_case_are_two_files_where_the_disk_says_so(tmp_path, source):
    check_outputs([source.with_name("A.png"), source.with_name("B.png")], [source])
    check_outputs([tmp_path / "New" / "b.png", tmp_path / "new" / "b.png"])


@pytest.fixture
def folds_case(monkeypatch):
    """A disk that ignores case in file names, as on macOS and Windows."""
    exact = os.stat

    def find(path, *args, **options):
        try:
            return exact(path, *args, **options)
        except FileNotFoundError:
            folder, name = os.path.split(path)
            for other in os.listdir(folder) if os.path.isdir(folder) else ():
                if other.casefold() == name.casefold():
                    return exact(os.path.join(folder, other), *args, **options)
            raise

    monkeypatch.setattr(os, "stat", find)


def test_names_that_differ_in_case_are_one_file_where_the_disk_ignores_case(
    tmp_path, source, folds_case
):
    assert "overwrite the input" in refused([source.with_name("A.PNG")], [source])
    assert "one file" in refused([tmp_path / "new" / "b.jpg", tmp_path / "NEW" / "B.jpg"])
    # One name, composed and decomposed.
    assert "one file" in refused([tmp_path / "K\u00e4fer.jpg", tmp_path / "Ka\u0308fer.jpg"])
    check_outputs([source.with_name("b.png"), tmp_path / "new" / "b.png"], [source])


def test_windows_opens_no_folder_to_sync_it(tmp_path, monkeypatch):
    """The file is written and renamed by then: that is no failure."""
    opened = os.open

    def denied(path, flags, *args, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", denied)
    write_whole(tmp_path / "new" / "a.json", b"content")
    assert (tmp_path / "new" / "a.json").read_bytes() == b"content"
    assert os.listdir(tmp_path / "new") == ["a.json"]


def test_a_folder_that_may_not_be_listed_is_written_to(tmp_path, monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root may list every folder")
    tmp_path.chmod(stat.S_IWUSR | stat.S_IXUSR)
    try:
        write_whole(tmp_path / "a.json", b"content")
        assert (tmp_path / "a.json").read_bytes() == b"content"
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_file_that_another_program_has_open_is_replaced_once_it_is_closed(tmp_path, monkeypatch):
    denials, replace, slept = [1, 2, 3], os.replace, []

    def denied_at_first(*names):
        if denials:
            denials.pop()
            raise PermissionError(13, "The process cannot access the file")
        replace(*names)

    monkeypatch.setattr(os, "replace", denied_at_first)
    monkeypatch.setattr(time, "sleep", slept.append)
    path = tmp_path / "last_checkpoint"
    path.write_bytes(b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and len(slept) == 3

    denials.extend(range(1000))
    with pytest.raises(WriteError, match="last_checkpoint could not be written"):
        write_whole(path, b"newer")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["last_checkpoint"]


def test_a_partial_file_that_is_open_elsewhere_stays_and_is_named(tmp_path, monkeypatch, caplog):
    partial = tmp_path / ".a.pth.partial"
    partial.touch()

    def denied(self, missing_ok=False):
        raise PermissionError(13, "in use")

    monkeypatch.setattr(type(partial), "unlink", denied)
    remove_partial_files(tmp_path)
    assert ".a.pth.partial could not be removed: in use" in caplog.text
