"""tools/download_weights.py against a server that answers in the form of GitHub's release API."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import golden
from helpers.project import ROOT, load_script
from helpers.web import Site, serve

from onenet.checkpoints import transfer
from onenet.checkpoints.files import save_checkpoint

RELEASE = "/repos/PeizeSun/OneNet/releases/tags/v0.1"
KEYS = json.loads((golden.FOLDER / "checkpoint_keys.json").read_text())
R18 = "onenet.res18.nodcn.yaml"


@pytest.fixture(scope="module")
def program():
    program = load_script("tools/download_weights.py")
    import _shared.recognition as recognition

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognition, "model_of", cache(recognition.model_of))
        yield program


def checkpoint(path: Path, shapes: dict[str, list[int]], **extras: Any) -> bytes:
    """A small file with arrays of these shapes, all of whose elements are one number."""
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save({"model": state, **extras}, path)
    return path.read_bytes()


def asset(site: Site, name: str, content: bytes, *, digest: bool = True) -> dict[str, Any]:
    """An entry of a release, with the keys of GitHub's API that say what a file is."""
    site.files[f"/files/{name}"] = content
    return {
        "id": 1,
        "name": name,
        "state": "uploaded",
        "content_type": "application/octet-stream",
        "size": len(content),
        "digest": f"sha256:{hashlib.sha256(content).hexdigest()}" if digest else None,
        "download_count": 3,
        "browser_download_url": f"{site.url}/files/{name}",
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("weights")
    return checkpoint(folder / "m.pth", KEYS[R18], iteration=269999)


@pytest.fixture
def site(monkeypatch, weights):
    """A release of three files."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    with serve() as site:
        assets = [
            asset(site, "R18_nodcn.pth", weights),
            asset(site, "R50_nodcn.pth", b"no weights", digest=False),
            asset(site, "log.txt", b"a log"),
        ]
        release = {"tag_name": "v0.1", "name": "models", "draft": False, "assets": assets}
        site.files[RELEASE] = json.dumps(release).encode()
        yield site


def run(program, site: Site, *words: str) -> None:
    program.main(["--api", site.url + RELEASE, *words])


def fails(program, site: Site, capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(program, site, *words)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in told
    return told[told.index("error: ") :]


def test_the_files_are_listed(program, site, capsys):
    run(program, site)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "MB", "SHA-256", "known"]
    assert [line.split()[0] for line in lines[2:5]] == ["R18_nodcn.pth", "R50_nodcn.pth", "log.txt"]
    assert lines[3].split()[1:] == ["0.0", "no"] and "download_weights.py NAME" in lines[-1]
    ((path, headers),) = site.asked
    assert path == RELEASE and headers["Accept"] == "application/vnd.github+json"


def test_one_is_downloaded_and_its_commands_are_printed(
    program, site, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    run(program, site, "r18", "--output", str(tmp_path / "my weights"))
    out = capsys.readouterr().out
    path = tmp_path / "my weights" / "R18_nodcn.pth"
    assert (
        hashlib.sha256(path.read_bytes()).digest()
        == hashlib.sha256(site.files["/files/R18_nodcn.pth"]).digest()
    )
    config = f"projects/OneNet/configs/{R18}"
    assert f"those of {config}, with 80 classes" in out and "size and SHA-256" in out
    assert f"python demo/demo.py --config-file {config}" in out
    assert f"--eval-only MODEL.WEIGHTS '{path}'" in out and "Evaluate on coco_2017_val" in out
    run(program, site, "R18_nodcn.pth", "--output", str(tmp_path / "my weights"))
    assert [path for path, _ in site.asked].count("/files/R18_nodcn.pth") == 1, "it is here"


def test_names(program, site, tmp_path, capsys):
    error = fails(program, site, capsys, "nodcn")
    assert "'nodcn' is part of 2 names: R18_nodcn.pth, R50_nodcn.pth" in error
    error = fails(program, site, capsys, "R18_nodcm.pt")
    assert "did you mean 'R18_nodcn.pth'" in error and "log.txt" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ((404, {}, b"{}"), "no such file (404)"),
        (
            (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000000"}, b"{}"),
            "the server limits how often it is asked (403); it takes the next request at ",
        ),
        ((429, {"retry-after": "30"}, b""), "it takes the next request in 30 s"),
        ((200, {"Content-Type": "text/html"}, b"<html>Sign in</html>"), "in another form"),
        ((200, {}, b'{"assets": [{"name": "a.pth", "size": "1"}]}'), "in another form"),
        ((200, {}, b'{"message": "moved"}'), "in another form"),
        ((301, {"Location": "file:///etc/passwd"}, b""), "redirects to file:///etc/passwd"),
        ((500, {}, b""), "answers 500"),
    ],
)
def test_what_the_api_may_answer(program, site, capsys, fault, told):
    site.faults[RELEASE] = [("status", *fault)]
    error = fails(program, site, capsys, "R18")
    assert told in error and RELEASE in error
    assert "https://github.com/PeizeSun/OneNet/releases/tag/v0.1 and give its path" in error
    assert "GITHUB_TOKEN" in error


def test_a_redirect_of_the_api_is_followed(program, site, capsys):
    site.files["/repositories/1"] = site.files[RELEASE]
    site.faults[RELEASE] = [("status", 301, {"Location": "/repositories/1"}, b"")]
    run(program, site)
    assert "R18_nodcn.pth" in capsys.readouterr().out


def test_a_cut_connection_goes_on(program, site, tmp_path, capsys):
    site.faults["/files/R18_nodcn.pth"] = [("cut", 1000)]
    run(program, site, "R18", "--output", str(tmp_path))
    assert "is whole" in capsys.readouterr().out
    assert [headers.get("Range") for _, headers in site.asked][-1] == "bytes=1000-"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ((404, {}, b""), "no such file (404)"),
        ((200, {}, b"other"), "sends 5 bytes instead of"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), "sends a web page"),
    ],
)
def test_what_a_download_may_answer(program, site, tmp_path, capsys, fault, told):
    site.faults["/files/R18_nodcn.pth"] = [("status", *fault)]
    error = fails(program, site, capsys, "R18", "--output", str(tmp_path))
    assert told in error and not (tmp_path / "R18_nodcn.pth").exists()


def test_another_content_of_the_same_size(program, site, tmp_path, capsys):
    content = site.files["/files/R18_nodcn.pth"]
    site.files["/files/R18_nodcn.pth"] = content[::-1]
    error = fails(program, site, capsys, "R18", "--output", str(tmp_path))
    assert hashlib.sha256(content).hexdigest() in error
    assert not (tmp_path / "R18_nodcn.pth").exists()


def test_a_file_that_fits_no_config_is_kept(program, site, tmp_path, capsys):
    error = fails(program, site, capsys, "R50", "--output", str(tmp_path))
    assert f"{tmp_path / 'R50_nodcn.pth'} is kept, but fits no config" in error
    assert "cannot be read as a checkpoint" in error
    assert (tmp_path / "R50_nodcn.pth").read_bytes() == b"no weights"


def test_the_token_goes_to_github_alone(program, site, monkeypatch, capsys):
    from _shared.releases import API, headers

    monkeypatch.setenv("GITHUB_TOKEN", "t0ken")
    assert headers(API)["Authorization"] == "Bearer t0ken"
    for other in ("https://mirror.org/x", "http://api.github.com/x", "https://api.github.com.x/"):
        assert "Authorization" not in headers(other)
    run(program, site)
    assert "Authorization" not in site.asked[0][1] and "t0ken" not in capsys.readouterr().out


# -- whose weights they are ------------------------------------------------------------------


@pytest.mark.parametrize("name", KEYS)
def test_the_originals_checkpoints_are_recognised(program, tmp_path, name):
    checkpoint(tmp_path / "m.pth", KEYS[name])
    known = [path for path in program.configs() if path.name in KEYS]
    found = program.recognise(tmp_path / "m.pth", known)
    assert (found.config.name, found.opts) == (name, ())
    assert found.classes == (1 if "crowdhuman" in name else 80)


@pytest.mark.parametrize("name", ["onenet.res18.dcn.yaml", "onenet.retinanet.res50.yaml"])
def test_another_number_of_classes(program, tmp_path, name):
    rows = {n: s[0] // 80 for n, s in KEYS[name].items() if n.startswith("head.cls_score.")}
    assert rows
    shapes = {n: [7 * rows[n], *s[1:]] if n in rows else s for n, s in KEYS[name].items()}
    checkpoint(tmp_path / "m.pth", shapes)
    found = program.recognise(tmp_path / "m.pth", [p for p in program.configs() if p.name in KEYS])
    assert found.config.name == name and found.opts == ("MODEL.OneNet.NUM_CLASSES", "7")
    assert "--opts MODEL.OneNet.NUM_CLASSES 7 MODEL.WEIGHTS m.pth" in program.commands(
        Path("m.pth"), found
    )


def test_an_average_is_what_counts(program, tmp_path):
    average = {name: torch.zeros(()).expand(shape) for name, shape in KEYS[R18].items()}
    save_checkpoint(tmp_path / "m.pth", {"model": {}, "ema": {"model": average, "updates": 1}})
    known = [path for path in program.configs() if path.name == R18]
    assert program.recognise(tmp_path / "m.pth", known).config.name == R18


def test_what_differs_from_the_nearest_is_told(program, tmp_path, monkeypatch):
    from onenet.errors import CheckpointError

    shapes = {name: shape for name, shape in KEYS[R18].items() if "deconv3" not in name}
    checkpoint(tmp_path / "m.pth", {**shapes, "head.more.weight": [2]})
    known = [path for path in program.configs() if path.name in KEYS]
    with pytest.raises(CheckpointError, match=f"The nearest, {R18}, differs:") as error:
        program.recognise(tmp_path / "m.pth", known)
    assert "1 not in the model: head.more.weight" in str(error.value)
    assert "missing: head.deconv.deconv3" in str(error.value)
    broken = tmp_path / "onenet.broken.yaml"
    broken.write_text("MODEL: {OneNet: {HEAD: YOLO}}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="onenet.broken.yaml cannot be built here"):
        program.recognise(tmp_path / "m.pth", [broken])
