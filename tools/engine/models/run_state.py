"""State of a training run as one file: a tree of dicts, lists, plain values and NumPy arrays in an
.npz, without pickle.
"""
from __future__ import annotations

import json
import zipfile
from typing import IO, Any, Callable, Dict, Mapping, Optional

import numpy as np

from cian.errors import PathLike
from cian.files import atomic_write, decoding

_TREE = "tree.json"
_ARRAY = "$array"


def write_state(path: PathLike, tree: Dict[str, Any], before: Optional[Callable[[], Any]] = None) -> None:
    """Replace ``path`` by ``tree``: at any moment the file is the old one or the new one, whole,
    also after a power failure.

    Parameters
    ----------
    before : as that of :func:`~cian.files.atomic_write`.

    Raises
    ------
    InputError
        The file cannot be written.
    TypeError
        Naming the place of a value that is neither a dict with string keys, a list, a tuple, a
        plain value nor a NumPy array.
    """
    arrays: Dict[str, np.ndarray] = {}
    plain = _strip(tree, "", arrays)
    arrays[_TREE] = np.frombuffer(json.dumps(plain).encode(), np.uint8)
    with atomic_write(path, sync=True, before=before) as stream:
        write_arrays(stream, arrays)


def read_state(path: PathLike) -> Dict[str, Any]:
    """The tree that :func:`write_state` wrote; tuples come back as lists.

    Raises
    ------
    InputError
        Naming the file: unreadable, or its content does not match its own checksums. No code in it
        is ever run.
    """
    with decoding(path, "is damaged", "remove it to start the run anew, or restore a copy"), \
            open(path, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return _fill(json.loads(arrays[_TREE].tobytes()), arrays)


def write_arrays(stream: IO[bytes], arrays: Mapping[str, np.ndarray], compressed: bool = False) -> None:
    """Write NumPy arrays as ``np.savez`` does; where that fails half way, nothing is written or said
    afterwards.
    """
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(value), allow_pickle=False)


def _strip(node: Any, place: str, arrays: Dict[str, np.ndarray]) -> Any:
    """``node`` with its arrays moved to ``arrays`` under the name of their place."""
    if isinstance(node, np.ndarray):
        arrays[place] = node
        return {_ARRAY: place}
    if isinstance(node, np.generic):
        return node.item()
    if isinstance(node, dict):
        if not all(isinstance(key, str) for key in node):
            raise TypeError(f"{place}: a key is not a string")
        return {key: _strip(value, f"{place}/{key}" if place else key, arrays) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_strip(value, f"{place}/{index}", arrays) for index, value in enumerate(node)]
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"{place}: a {type(node).__name__} cannot be saved")


def _fill(node: Any, arrays: Any) -> Any:
    if isinstance(node, dict):
        return arrays[node[_ARRAY]] if _ARRAY in node else {key: _fill(value, arrays)
                                                            for key, value in node.items()}
    return [_fill(value, arrays) for value in node] if isinstance(node, list) else node
