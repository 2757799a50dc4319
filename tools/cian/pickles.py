"""Pickles as data: no name in them is looked up but those that a reader admits, so no code of a file runs."""
from __future__ import annotations

import pickle
from typing import IO, Any, Mapping, Tuple


class Admitting(pickle.Unpickler):
    """Unpickles with stand-ins for the names (module, name) that are admitted; any other is an
    ``UnpicklingError``, and damaged bytes may raise nearly any kind of error.
    """

    def __init__(self, stream: IO[bytes], admitted: Mapping[Tuple[str, str], Any],
                 encoding: str = "ASCII") -> None:
        super().__init__(stream, encoding=encoding)
        self._admitted = admitted

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._admitted[module, name]
