"""Mutations of bytes and of texts: JSON and YAML."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

import yaml

from .trees import mutate_tree

_BYTES = [b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\\u", b'"']
_BYTES += [b"{", b"}", b"[", b"]", b"\n", b"\r", b"\t", b"\x7f" * 8, b"\xff" * 8, b"A" * 1000]
_JSON = ["NaN", "-Infinity", "1e999", "-0", "0x10", ".5", "+1", "01", "9" * 4300, "9" * 5000]
_JSON += ["null", "1e-999", "1E400", "[" * 2000 + "]" * 2000, "[" * 100_000, '{"a":' * 100_000]
_JSON += ['"\\ud800"', '"\\u0000"', "''", "tru", "1e", "-", "//", '"\t"', "1" + "0" * 400 + ".0"]
_JSON += ['"\\x"', "{}"]
_YAML = ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "&a [*a]", "*a"]
_YAML += ["&a {<<: *a}", "{<<: [*a, *b]}", "2020-13-45", "2020-01-01T99:99:99Z", "0x" + "f" * 5000]
_YAML += [".inf", "-.inf", ".nan", "1_000", "0b1", "0o9", "190:20:30", "1e5", "1.0e+400"]
_YAML += ["9" * 5000, "!!binary '*'", "!!binary aGVsbG8=", "!!set {a, b}", "!!omap [a: 1]"]
_YAML += ["!!pairs [a: 1]", "!!timestamp x", "!!int ''", "!!int '0x'", "!!float ''"]
_YAML += ["!!float '1:60'", "!!null x", "!!str 1", "!!map []", "!!seq {}", "!x y", "!<tag:x> y"]
_YAML += ["? [1]", "? {a: b}", "|", ">-2", "'", '"\\ud800"', '"\\x00"', '"\\q"', "%YAML 9.9", "---"]
_YAML += ["...", "\t", "@x", "`x", "[" * 2000, "{a: " * 500, "{a: {a: {a: {a: {a: {a: 1}}}}}}"]
_YAML += ["(1,)", "(" * 300, "-" * 3000 + "1", "{1: 2}", "'(1, [2, (3,)])'", "'{[]: 1}'", "'9' * 9"]
_YAML += ["'[' ", "''", "~", "null", "yes", "[]", "{}", "[~]", "1000000000", "-1", "0", "1"]
_YAML += ["65536", "[1, 1000000000]", "[[1]]", "[[]]", "[[1, 2], [3]]", "self.yaml", "base0.yaml"]
_YAML += ["base1.yaml", "[base0.yaml, base0.yaml]", "/dev/zero", ".", "../..", "'\\0'", "~root/x"]
_YAML += ["'~nobody-there/x'", "a" * 300, "a/" * 3000, "'0x" + "f" * 5000 + "'"]
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SEPARATOR = b"\n# next file\n"  # between the files of a config


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """Bytes with one change that knows nothing of what they mean."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice([1, 1, 2, 4, 16, 100]))
    change = rng.randrange(6)
    if change == 0 and data:
        start = min(start, len(data) - 1)
        return data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :]
    if change == 1:
        return data[:start]
    if change == 2:
        return data[:start] + data[end:]
    if change == 3:
        return data[:end] + data[start:]
    if change == 4:
        return data[:start] + rng.choice(_BYTES) + data[start:]
    return data[:start] + rng.choice(_BYTES) + data[end:]


def mutate_json(rng: Random, data: bytes) -> bytes:
    """A JSON document with one change: of its tree, its text, its encoding or its bytes."""
    how = rng.randrange(20)
    if how == 0:
        return mutate_bytes(rng, data)
    if how == 1:
        return recode(rng, data)
    if how < 4:
        return at_token(rng, data, rb'"(?:[^"\\]|\\.)*"|[-+.\w]+', _JSON)
    try:
        return _json(rng, mutate_tree(rng, json.loads(data)))
    except (ValueError, RecursionError):  # broken by a change before this one
        return mutate_bytes(rng, data)


def mutate_json_lines(rng: Random, data: bytes) -> bytes:
    """JSON documents, a line each, with one change."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.2:
        lines.insert(at, rng.choice(lines))
    else:
        lines[at] = mutate_json(rng, lines[at])
    return b"\n".join(lines)


def mutate_yaml(rng: Random, data: bytes) -> bytes:
    """A config, or several files of one, with one change: of a value, a line or its bytes."""
    how = rng.randrange(20)
    if how == 0:
        return mutate_bytes(rng, data)
    if how == 1:
        return recode(rng, data)
    if how == 2:
        return at_token(rng, data, rb"[\w.]+", _YAML)
    if how < 5:
        return change_line(rng, data)
    if how < 12:  # a value, up to the end of its line
        return at_token(rng, data, rb"(?<=: )[^\n]+", _YAML)
    files = data.split(SEPARATOR)
    at = rng.randrange(len(files))
    try:
        tree = mutate_tree(rng, yaml.load(files[at], _Loader))
        files[at] = _json(rng, tree)  # which is YAML, too
    except Exception:  # of every kind, where a change before this one has broken it
        return mutate_bytes(rng, data)
    return SEPARATOR.join(files)


def _json(rng: Random, tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=rng.random() < 0.7).encode(errors="surrogatepass")


def at_token(rng: Random, data: bytes, pattern: bytes, odd: list[str]) -> bytes:
    """With a token replaced: by an odd one, or by another of the text."""
    tokens = list(re.finditer(pattern, data))
    if not tokens:
        return mutate_bytes(rng, data)
    token = rng.choice(tokens)
    new = rng.choice(tokens)[0] if rng.random() < 0.3 else rng.choice(odd).encode()
    if rng.random() < 0.1:  # a key twice, and the like
        new = token[0] + b": " + new + b", " + token[0]
    return data[: token.start()] + new + data[token.end() :]


def change_line(rng: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    change = rng.randrange(5)
    if change == 0:
        del lines[at]
    elif change == 1:
        lines.insert(other, lines[at])
    elif change == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif change == 3:
        lines[at] = rng.choice([b"  ", b" ", b"\t", b"- "]) + lines[at]
    else:
        lines[at] = lines[at].lstrip() if rng.random() < 0.5 else lines[at].replace(b":", b"")
    return b"\n".join(lines)


def recode(rng: Random, data: bytes) -> bytes:
    text = data.decode(errors="replace")
    encoding = rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp500"])
    return text.encode(encoding, errors="replace")
