"""Pickles of arrays, such as Detectron2's ``.pkl``, read without running what they name.

Not even numpy's own unpickling runs, as forged types let it take bytes for addresses: stand-ins
collect what describes an array, and it is made from that.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections import OrderedDict
from typing import Any

import numpy as np

from onenet.errors import UnsafePickleError


def load_arrays(content: bytes) -> Any:
    """The containers and arrays of a pickle, Python 2's included.

    Raises:
        UnsafePickleError: it asks for anything else; the message names it.
        pickle.UnpicklingError: it is broken.
    """
    try:
        return _finish(_Unpickler(io.BytesIO(content), encoding="latin1").load(), {})
    except UnsafePickleError:
        raise
    except Exception as error:  # of any kind: an opcode finds what it did not expect
        raise pickle.UnpicklingError(
            f"it is no pickle, or a broken one ({type(error).__name__}: {error})"
        ) from error


class _DType:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: str, *_options: Any) -> None:
        if re.fullmatch(r"[<>=|]?[biufc]\d+", code) is None:
            raise UnsafePickleError(f"an array of {code!r} instead of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray`` and the function that makes an empty one."""

    def __init__(self, *_empty: Any) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.array = _make_array(content, dtype, shape, "F" if fortran else "C")


def _make_array(
    content: bytes | str, dtype: _DType, shape: tuple[int, ...], order: str = "C"
) -> np.ndarray:
    content = _encode(content) if isinstance(content, str) else content  # Python 2's bytes
    if not isinstance(content, bytes | bytearray):
        raise UnsafePickleError(f"an array made of {type(content).__name__}")
    array = np.ndarray(shape, dtype.dtype, content, order=order)
    return array.astype(dtype.dtype.newbyteorder("="))


def _make_scalar(dtype: _DType, content: bytes | str) -> np.generic:
    return _make_array(content, dtype, ())[()]


def _encode(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


_KNOWN = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "numpy.dtype": _DType,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _make_scalar,
    "numpy.core.numeric._frombuffer": _make_array,
}


class _Unpickler(pickle._Unpickler):
    """The one in Python: C's would take any amount of memory that a file's memo asks for."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def load_bytearray8(self) -> None:
        """As many bytes as are there: Python's own takes memory for as many as a file says."""
        (size,) = struct.unpack("<Q", self.read(8))
        content = self.read(size)
        if len(content) < size:
            raise pickle.UnpicklingError(f"{size} bytes are announced, {len(content)} are there")
        self.append(bytearray(content))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 has moved its parts.
        known = _KNOWN.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if known is None:
            raise UnsafePickleError(f"it asks for {module}.{name}")
        return known


def _finish(value: Any, done: dict[int, Any]) -> Any:
    """Arrays in place of their stand-ins; what is shared is visited once.

    Args:
        done: by its id, what has been finished.
    """
    if isinstance(value, _Array):
        return value.array
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {_finish(k, done): _finish(v, done) for k, v in value.items()}
        else:
            done[id(value)] = type(value)(_finish(item, done) for item in value)
    return done[id(value)]
