"""Mutations of checkpoints: zip archives, pickles and safetensors."""

from __future__ import annotations

import io
import json
import math
import pickletools
import struct
import zipfile
from functools import cache
from random import Random
from typing import Any

from torch._weights_only_unpickler import _get_allowed_globals

from .texts import mutate_bytes
from .trees import mutate_tree

_SIZES = [0, 1, 2, 3, 5, 127, 255, 256, 65535, 2**20, 2**28, 2**31 - 1, 2**31, 2**32 - 1]
_LONGS = [*_SIZES, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
_NAMES = ["data.pkl", "archive/data.pkl", "archive/data/0", "archive/data/1", "", "../x", "a" * 300]
_NAMES += ["archive/version", "archive/byteorder", "archive/constants.pkl", "/data.pkl", "data/0"]
_NAMES += ["archive/.data/serialization_id", "archive/.format_version", "other/data.pkl", "ä"]
_FORBIDDEN = ["os system", "builtins eval", "builtins getattr", "torch load", "numpy load"]
_FORBIDDEN += ["torch.storage _load_from_bytes", "numpy dtype", "_codecs encode", " ", "a.b c"]
_NUMPY = ["numpy dtype", "numpy ndarray", "numpy.core.multiarray _reconstruct", "_codecs encode"]
_NUMPY += ["numpy.core.multiarray scalar", "numpy.core.numeric _frombuffer", "builtins object"]
_NUMPY += ["numpy._core.multiarray scalar", "collections OrderedDict", "copyreg _reconstructor"]
_DEEP = [b"]" * 5000 + b"a" * 4999, b"(" * 3000, b"}" * 2000 + b"N" * 20, b"(l" * 3000]
_DEEP += [b"N" + b"\x85" * 5000, b"N" + b"\x85" * 100_000, b"2" * 100_000, b"N" * 100_000]
# What stands for text, for numbers in text, and for calls of what has been named before.
_WORDS = [b"0", b"1", b"cpu", b"cuda:0", b"meta", b"mps", b"hpu:9", b"model", b"ema", b"storage"]
_LINES = [b"0", b"-1", b"9" * 400, b"9" * 5000, b"x", b"nan", b"'", b"01", b"\\x", b"1L"]
_CALLS = [b"", b")R", b"(tR", b"NR", b"}b", b"Nb", b")\x81", b"K\x01\x85R", b"\x93", b"]}\x92"]
_CALLS += [b"J\xff\xff\xff\x7f\x85R", b"J\xff\xff\xff\x7f\x85\x81"]


def mutate_zip(rng: Random, data: bytes) -> bytes:
    """A checkpoint of ``torch.save`` with one change: of its parts, its headers or its bytes."""
    how = rng.randrange(12)
    if how == 0:
        return mutate_bytes(rng, data)
    if how == 1:
        return _lie_in_headers(rng, data)
    parts = _parts(data)
    if not parts:
        # The format of old versions: a sequence of pickles, then numbers.
        return mutate_pickle(rng, data)
    pickles = [at for at, (name, _) in enumerate(parts) if name.endswith(".pkl")]
    if how < 9 and pickles:
        at = rng.choice(pickles)
        parts[at] = parts[at][0], mutate_pickle(rng, parts[at][1])
    else:
        _change_parts(rng, parts)
    return _zipped(parts, packed=rng.random() < 0.05)


def mutate_pickle(rng: Random, data: bytes) -> bytes:
    """A pickle, or several, with one change: of its opcodes, their arguments or its bytes."""
    pieces = _opcodes(data)
    if len(pieces) < 2 or rng.random() < 0.05:
        return mutate_bytes(rng, data)
    at, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
    change = rng.randrange(12)
    if change == 0:
        del pieces[at]
    elif change == 1:
        pieces.insert(other, pieces[at])
    elif change == 2:
        pieces[at], pieces[other] = pieces[other], pieces[at]
    elif change == 3:
        pieces.insert(at, _new_opcode(rng))
    else:
        wanted = [i for i, piece in enumerate(pieces) if piece[:1] in _WITH_ARGUMENT]
        at = rng.choice(wanted or [at])
        pieces[at] = _other_argument(rng, pieces[at])
    return b"".join(pieces)


def mutate_safetensors(rng: Random, data: bytes) -> bytes:
    """A .safetensors file with one change: of its header, the header's length or its bytes."""
    how = rng.randrange(10)
    (size,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    if how == 0:
        return mutate_bytes(rng, data)
    if how == 1:
        other = rng.choice([*_LONGS, size - 1, size + 1, len(data) - 8]) % 2**64
        return struct.pack("<Q", other) + data[8:]
    try:
        header = json.dumps(mutate_tree(rng, json.loads(data[8 : 8 + size])))
    except (ValueError, RecursionError):
        return mutate_bytes(rng, data)
    if how == 2:
        header = header.replace("F32", rng.choice(["F16", "BF16", "I64", "BOOL", "F8_E4M3", "C64"]))
    raw = header.encode(errors="surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + data[8 + size :]


def _parts(data: bytes) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 2**20:
                return []
            return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:  # what has been mutated before is broken in many ways
        return []


def _zipped(parts: list[tuple[str, bytes]], packed: bool) -> bytes:
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in parts:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            archive.writestr(entry, content)
    return file.getvalue()


def _change_parts(rng: Random, parts: list[tuple[str, bytes]]) -> None:
    at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    name, content = parts[at]
    change = rng.randrange(6)
    if change == 0:
        del parts[at]
    elif change == 1:
        parts.insert(other, (name, parts[other][1]))
    elif change == 2:
        parts[at] = rng.choice(_NAMES), content
    elif change == 3:
        parts[at] = name, content[: rng.randrange(len(content) + 1)]
    elif change == 4:
        parts[at] = name, rng.choice([b"", b"big", b"little", b"\xff" * 8, content * 3, b"0" * 999])
    else:
        parts[at] = name, mutate_bytes(rng, content)


def _lie_in_headers(rng: Random, data: bytes) -> bytes:
    """Another number in one of a zip archive's headers."""
    # Signature, and where numbers of 2 and 4 bytes stand behind it.
    fields = {
        b"PK\x03\x04": ([4, 6, 8, 26, 28], [14, 18, 22]),
        b"PK\x01\x02": ([4, 6, 8, 10, 28, 30, 32, 34], [16, 20, 24, 38, 42]),
        b"PK\x05\x06": ([4, 6, 8, 10, 20], [12, 16]),
    }
    signature = rng.choice(list(fields))
    starts = [i for i in range(len(data)) if data.startswith(signature, i)]
    if not starts:
        return mutate_bytes(rng, data)
    two, four = fields[signature]
    at = rng.choice(starts) + rng.choice(two + four)
    width = 2 if at - max(s for s in starts if s <= at) in two else 4
    number = rng.choice(_SIZES) % 2 ** (8 * width)
    return data[:at] + number.to_bytes(width, "little") + data[at + width :]


def _opcodes(data: bytes) -> list[bytes]:
    """The opcodes of consecutive pickles with their arguments, then the remaining bytes."""
    pieces: list[bytes] = []
    start = 0
    while start < len(data):
        ends: list[int] = []
        try:
            for _, _, position in pickletools.genops(data[start:]):
                ends.append(start + position)
            ends.append(data.index(b".", ends[-1]) + 1)
        except Exception:  # no pickle any more, which genops says in many ways
            pieces.append(data[start:])
            break
        pieces += [data[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
        start = ends[-1]
    return pieces


_WIDTHS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d", b"q": "<B", b"h": "<B", b"r": "<I"}
_WIDTHS |= {b"j": "<I", b"X": "<I", b"B": "<I", b"T": "<I", b"\x8b": "<I", b"\x8a": "<B"}
_WIDTHS |= {b"\x8c": "<B", b"C": "<B", b"U": "<B", b"\x8d": "<Q", b"\x8e": "<Q", b"\x95": "<Q"}
_WIDTHS |= {b"\x96": "<Q", b"\x80": "<B"}
_INTEGERS = (b"K", b"M", b"J")
_TEXTS = (b"X", b"\x8c", b"U", b"T")
_WITH_ARGUMENT = (*_WIDTHS, b"c", b"I", b"L", b"F", b"S", b"V", b"p", b"g", b"\x88", b"\x89")


def _other_argument(rng: Random, piece: bytes) -> bytes:
    code = piece[:1]
    if code == b"c":
        return _global(rng)
    if code in _INTEGERS:
        number = rng.choice(_LONGS) * rng.choice([1, 1, -1])
        raw = number.to_bytes(10, "little", signed=True)
        return rng.choice([b"\x8a\x0a" + raw, b"J" + raw[:4], b"N", b"\x88", b"G" + bytes(8)])
    if code in (b"\x88", b"\x89"):
        return rng.choice([b"N", b"K\x00", b"]", b"}", b")", b"\x88", b"\x89"])
    if code in _TEXTS and rng.random() < 0.6:
        text = rng.choice(_WORDS)
        return b"X" + struct.pack("<I", len(text)) + text
    if code in _WIDTHS:
        form = _WIDTHS[code]
        size = struct.calcsize(form)
        if form == ">d":
            return code + struct.pack(form, rng.choice([0.0, -1.0, 1e300, math.nan, math.inf]))
        number = rng.choice(_LONGS) % 2 ** (8 * size - (form == "<i"))
        return code + struct.pack(form, number) + piece[1 + size :]
    return code + rng.choice(_LINES) + b"\n"


def _new_opcode(rng: Random) -> bytes:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(_DEEP)
    if kind == 1:
        return _global(rng) + rng.choice(_CALLS)
    if kind == 2:
        code = rng.choice(list(_WIDTHS))
        form = _WIDTHS[code]
        limit = 2 ** (8 * struct.calcsize(form) - 1)
        value: Any = 1e308 if form == ">d" else rng.choice(_LONGS) % limit
        return code + struct.pack(form, value)
    if kind == 3:
        return b"\x8b" + struct.pack("<I", rng.choice([3, 2**20, 2**31 - 1])) + b"\xff\xff\x7f"
    return bytes([rng.choice(_CODES)])


_CODES = [ord(opcode.code) for opcode in pickletools.opcodes]


@cache
def _globals() -> list[str]:
    allowed = [" ".join(name.rpartition(".")[::2]) for name in _get_allowed_globals()]
    return [*sorted(allowed), *_NUMPY * 5, *_FORBIDDEN]


def _global(rng: Random) -> bytes:
    module, _, name = rng.choice(_globals()).partition(" ")
    return f"c{module}\n{name}\n".encode()
