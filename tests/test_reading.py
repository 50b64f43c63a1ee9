"""Reading text: byte-order marks, line ends, and what is no text."""

from __future__ import annotations

import json
import os

import pytest
from helpers.coco_example import GOOD
from helpers.configs import write

from onenet.config.yaml import read_with_bases
from onenet.data.coco_json import read_coco_json
from onenet.errors import ConfigError, DatasetError
from onenet.files import read_bytes, read_json, read_text


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_text_without_its_mark_and_with_one_kind_of_line_end(tmp_path, mark):
    (tmp_path / "a.txt").write_bytes(mark + "ä\r\nb\rc\n\ufeffd".encode())
    assert read_text(tmp_path / "a.txt") == "ä\nb\nc\n\ufeffd"


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-32"])
def test_text_in_another_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("a\nbä".encode(encoding))
    with pytest.raises(DatasetError, match=r"a\.txt .* in line \d is not UTF-8; save the file as"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["gone", ".", "a" * 300, "a\0"])
@pytest.mark.parametrize("read", [read_text, read_bytes, read_json])
def test_what_cannot_be_read_is_named(tmp_path, name, read):
    with pytest.raises(ConfigError, match="cannot be read: ") as error:
        read(tmp_path / name, ConfigError)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "a.txt"
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        (os.mkfifo if kind == "pipe" else os.mkdir)(path)
    with pytest.raises(DatasetError, match=r"a\.txt cannot be read: it is not a regular file"):
        read_text(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000])
def test_what_is_no_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DatasetError, match=r"a\.json is not valid JSON: "):
        read_json(tmp_path / "a.json")


def test_a_coco_file_with_a_mark(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert read_coco_json(tmp_path / "a.json") == GOOD


def test_a_config_with_a_mark(tmp_path):
    write(tmp_path, "\ufeff_BASE_: base.yaml\n", "c.yaml")
    write(tmp_path, "\ufeffSEED: 5\n", "base.yaml")
    assert [values for _, values in read_with_bases(tmp_path / "c.yaml")] == [{"SEED": 5}, {}]
