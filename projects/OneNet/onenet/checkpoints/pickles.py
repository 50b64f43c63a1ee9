"""Reading pickles of arrays, such as Detectron2's ``.pkl``, without running what they name.

NumPy's own unpickling does not run either, since a forged dtype makes it treat bytes as addresses.
Instead, stand-in classes collect the description of each array and build it from that.
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
    """Read the containers and arrays of a pickle written by Python 2 or 3.

    Raises:
        UnsafePickleError: the pickle asks for anything else; the message names it.
        pickle.UnpicklingError: the pickle is broken.
    """
    try:
        return _finish(_Unpickler(io.BytesIO(content), encoding="latin1").load(), {})
    except UnsafePickleError:
        raise
    except Exception as error:  # opcodes raise errors of any kind on broken content
        raise pickle.UnpicklingError(
            f"it is not a pickle, or it is broken ({type(error).__name__}: {error})"
        ) from error


class _DType:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, code: str, *_options: Any) -> None:
        if re.fullmatch(r"[<>=|]?[biufc]\d+", code) is None:
            raise UnsafePickleError(f"an array of {code!r} instead of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for ``numpy.ndarray`` and for the function that makes an empty one."""

    def __init__(self, *_empty: Any) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.array = _make_array(content, dtype, shape, "F" if fortran else "C")


def _make_array(
    content: bytes | str, dtype: _DType, shape: tuple[int, ...], order: str = "C"
) -> np.ndarray:
    content = _encode(content) if isinstance(content, str) else content  # bytes from Python 2
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
    """Based on the unpickler in Python: the one in C allocates any memory that a file asks for."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def load_bytearray8(self) -> None:
        """Read only the bytes that exist; Python's own method allocates what the file states."""
        (size,) = struct.unpack("<Q", self.read(8))
        content = self.read(size)
        if len(content) < size:
            raise pickle.UnpicklingError(f"it states {size} bytes, but holds {len(content)}")
        self.append(bytearray(content))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 renamed numpy.core to numpy._core.
        known = _KNOWN.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if known is None:
            raise UnsafePickleError(f"it asks for {module}.{name}")
        return known


def _finish(value: Any, done: dict[int, Any]) -> Any:
    """Replace stand-ins by their arrays, in containers of any depth.

    Args:
        done: results by the id of their container, so that shared ones are visited once.
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
