"""A short run of the fuzzing that ``make fuzz`` does at length, and what it has found."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from fuzz.strategies import mutated
from fuzz.targets import TARGETS, TinyDetector
from helpers.configs import refused, write
from hypothesis import HealthCheck, given, settings

from onenet.checkpoints.pickles import load_arrays
from onenet.checkpoints.weights import load_weights
from onenet.errors import CheckpointError, ConfigError, DatasetError, OneNetError
from onenet.lightning.config import load_cfg

EXAMPLES = 60  # of each target


@pytest.mark.filterwarnings("ignore")  # of what torch will no longer save
@pytest.mark.parametrize("name", ["annotations", "configs", "pkl", "trees"])
def test_mutations_start_from_valid_files(name, tmp_path):
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds
    for data in seeds:
        file = tmp_path / f"input{target.suffix}"
        file.write_bytes(data)
        target.read(file)  # raises an error where it is not valid


@pytest.mark.filterwarnings("ignore")  # of numbers beyond float32, and the like
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_mutated_files_are_taken_or_refused(target, tmp_path):
    ends = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(target))
    def read(data: bytes) -> None:
        file = tmp_path / f"input{target.suffix}"
        file.write_bytes(data)
        try:
            target.read(file)
        except OneNetError as error:
            ends[str(error)] += 1
        else:
            ends["taken"] += 1

    read()
    assert len(ends) > 5


# -- configs ---------------------------------------------------------------------------------

HUGE = "0x" + "f" * 5000  # Python refuses to write so many digits in decimals

CONFIGS = {
    "number": (f"SEED: {HUGE}", "line 1 .*0xff.* has more than 64 bits"),
    "number-in-text": (f"SEED: '{HUGE}'", "SEED has a number of more than 64 bits"),
    "number-in-a-tuple": (
        f"INPUT: {{MIN_SIZE_TRAIN: '(1, {HUGE})'}}",
        "MIN_SIZE_TRAIN has a number of more than 64 bits",
    ),
    "number-for-a-section": (f"INPUT: {HUGE}", "more than 64 bits"),
    "number-for-a-float": ("SOLVER: {BASE_LR: 1" + "0" * 400 + "}", "more than 64 bits"),
    "flow-levels": ("SEED: " + "[" * 2000, "nested too deep"),
    "length": ("#" * 300_000, "more than 200000 characters"),
    "base-too-long": (f"_BASE_: {'a/' * 3000}", "can't be read: File name too long"),
    "base-with-nul": ('_BASE_: "\\0"', "can't be read: embedded null byte"),
    "base-no-text": ('_BASE_: "\\ud800"', "can't be read: .*surrogates"),
    "base-of-nobody": ("_BASE_: ~nobody-is-called-so/c.yaml", "does not exist"),
    "classes": (
        "MODEL: {OneNet: {NUM_CLASSES: 9000000000000000000}}",
        "NUM_CLASSES is 9.* at most",
    ),
    "layers": ("MODEL: {OneNet: {NUM_CONV: 1000000000}}", "NUM_CONV is 1000000000; .*1000 at most"),
    "anchors": ("MODEL: {ANCHOR_GENERATOR: {SIZES: [[1.0e+308]]}}", "SIZES is .* at most"),
}


@pytest.mark.parametrize(("text", "told"), CONFIGS.values(), ids=CONFIGS)
def test_configs_refused(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told):
        load_cfg(write(tmp_path, text))


def test_bases_that_double_with_every_file(tmp_path):
    for number in range(40):
        write(tmp_path, f"_BASE_: [{number + 1}.yaml, {number + 1}.yaml]", f"{number}.yaml")
    write(tmp_path, "SEED: 1", "40.yaml")
    assert "one of more than 100" in refused(tmp_path / "0.yaml")


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-is-called-so/m.pth", "\0", "\ud800"])
def test_names_of_weights_that_no_file_has(name):
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_weights(TinyDetector(), name)


# -- annotation files ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[" * 100_000, "1: not a JSON object: maximum recursion"),
        (
            '{"ID": "one", "gtboxes": [{"tag": "person", "fbox": [0, 0, 1, 1' + "0" * 400 + "]}]}",
            "'fbox' must be",
        ),
    ],
)
def test_crowdhuman_annotations_refused(tmp_path, line, told):
    odgt = TARGETS["odgt"]
    (tmp_path / "a.odgt").write_text(line.replace('"one"', '"ä"'), encoding="utf-8")
    with pytest.raises(DatasetError, match=told):
        odgt.read(tmp_path / "a.odgt")


# -- checkpoints -----------------------------------------------------------------------------


def test_no_more_bytes_than_are_there():
    """Python's own unpickler takes memory for as many as a file says that it holds."""
    head = b"\x80\x05\x96"
    assert load_arrays(head + (3).to_bytes(8, "little") + b"abc.") == b"abc"
    with pytest.raises(pickle.UnpicklingError, match="bytes, but holds 4"):
        load_arrays(head + (2**62).to_bytes(8, "little") + b"abc.")


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("costly", "name"), [(Call(bytearray, 2**40), "bytearray"), (b"\xff", "_codecs.encode")]
)
def test_calls_that_take_any_memory_or_time(tmp_path, costly, name, zipped):
    content = {"model": TinyDetector().state_dict(), "more": costly}
    path = tmp_path / "m.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=f"m.pth .*asks for {name}"):
        load_weights(TinyDetector(), str(path))


ODD = {
    "sparse": lambda bias: bias.to_sparse(),
    "quantised": lambda bias: torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8),
    "meta": lambda bias: bias.to("meta"),
    "complex": lambda bias: bias.to(torch.complex64),
    "nested": lambda bias: torch.nested.nested_tensor([bias]),
}


@pytest.mark.filterwarnings("ignore")  # of torch: that sparse ones are slow, nested ones new
@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
@pytest.mark.parametrize("averaged", [False, True])
def test_arrays_that_no_parameter_takes(tmp_path, change, averaged):
    good = TinyDetector().state_dict()
    odd = {**good, "backbone.0.bias": change(good["backbone.0.bias"])}
    content = {"model": good, "ema": {"model": odd}} if averaged else odd
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="'backbone.0.bias' is not an ordinary array"):
        load_weights(TinyDetector(), str(tmp_path / "m.pth"))


@pytest.mark.parametrize("state", [3, [1], {"backbone.0.bias": 3}, {3: torch.zeros(2)}])
def test_an_average_that_is_none(tmp_path, state):
    content = {"model": TinyDetector().state_dict(), "ema": {"model": state}}
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_weights(TinyDetector(), str(tmp_path / "m.pth"))


def test_weights_may_say_anything_of_themselves(tmp_path):
    arrays = {name: value.numpy() for name, value in TinyDetector().state_dict().items()}
    path = Path(tmp_path / "m.pkl")
    path.write_bytes(pickle.dumps({"model": arrays, "weights": arrays["backbone.0.bias"]}))
    assert "weights" in load_weights(TinyDetector(), str(path))
