"""Files that are whole or absent: atomic writing, reading, checksums, locks, what a file recorded
against what is asked for. Standard library only.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from typing import IO, Any, Callable, Dict, Iterator, List, Mapping, Optional, Set, Tuple

from cian.errors import InputError, PathLike, write_error

PATIENCE_S = 2.0  # for the lock of a process that is ending: a killed one frees its memory first
_counter = itertools.count()
IMAGE_SUFFIXES = tuple(case(suffix) for suffix in (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
                       for case in (str.lower, str.upper))
SUFFIXES = (*IMAGE_SUFFIXES, ".xml", ".XML")  # of the files that a data set has a name for
_TEMPORARY = re.compile(r"\.\d+\.\d+\.tmp")
_looked_at: Set[str] = set()
_held: Set[int] = set()  # descriptors of locks


def _leave_locks_to_parent() -> None:
    """A forked process holds none of its parent's locks, which end with the parent."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_leave_locks_to_parent)


@contextlib.contextmanager
def atomic_write(path: PathLike, mode: str = "wb", *, sync: bool = False,
                 before: Optional[Callable[[], Any]] = None) -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and rename it to ``path`` once the block has ended
    without an exception.

    Parameters
    ----------
    path : the final name; missing parent folders are made.
    mode : 'wb' or 'w' (UTF-8).
    sync : also wait until the content is on the disk, so that it survives a power failure.
    before : called when all is written and only the renaming is left; its exceptions leave ``path``
        as it was.

    Raises
    ------
    InputError
        Naming ``path`` when it cannot be written (a full disk, no permission). ``path`` is then as
        it was before.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', not {mode!r}")
    final = os.fspath(path)
    folder = os.path.dirname(final) or "."
    try:
        os.makedirs(folder, exist_ok=True)
        remove_abandoned(folder)
        descriptor, temporary = _open_temporary(folder)
    except OSError as error:
        raise write_error(error, final) from error
    try:
        try:
            # names that are not UTF-8 are written as they are
            text: Dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape"}
            # the lock is that of ``descriptor``, which stays open until the file has its name
            with open(os.dup(descriptor), mode, **text) as stream:
                yield stream
                if sync:
                    stream.flush()
                    os.fsync(stream.fileno())
            if before is not None:
                before()
            os.replace(temporary, final)
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        # An error of the block's own files carries their name; one of writing carries none, or ours.
        if error.filename is None or os.fspath(error.filename) in (temporary, final):
            raise write_error(error, final) from error
        raise


def _open_temporary(folder: str) -> Tuple[int, str]:
    """A new file ``.PROCESS.NUMBER.tmp``, open and locked, so that :func:`remove_abandoned` of any
    process tells it from those of killed processes; and its path.
    """
    while True:
        path = os.path.join(folder, f".{os.getpid()}.{next(_counter)}.tmp")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:  # of a killed process that had our number
            continue
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is removed
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)  # taken for an abandoned one before it was locked


def remove_abandoned(folder: str) -> None:
    """Remove the temporary files that killed processes left in a folder; looks once a process."""
    folder = os.path.realpath(folder)
    if folder in _looked_at:
        return
    _looked_at.add(folder)
    for name in os.listdir(folder):
        if _TEMPORARY.fullmatch(name):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):  # it is at work, or another one has removed it
                descriptor = os.open(path, os.O_RDWR)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                finally:
                    os.close(descriptor)


def atomic_write_bytes(path: PathLike, content: bytes, *, sync: bool = False) -> None:
    """Write ``content`` to ``path`` by :func:`atomic_write`."""
    with atomic_write(path, "wb", sync=sync) as stream:
        stream.write(content)


def write_json(path: PathLike, content: Any) -> None:
    """Write ``content`` as indented JSON by :func:`atomic_write`."""
    atomic_write_bytes(path, json.dumps(content, indent=1).encode())


def read_bytes(path: PathLike) -> bytes:
    """Content of a file; an :class:`InputError` names one that is missing, empty or unreadable."""
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except FileNotFoundError as error:
        raise InputError("does not exist", file=path, remedy=_beside(os.fspath(path))) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error
    if not content:
        raise InputError("is empty", file=path)
    return content


def _beside(path: str) -> Optional[str]:
    """A hint at files that have the name of a missing one and another suffix."""
    stem, missing = os.path.splitext(path)
    found = [os.path.basename(stem + suffix) for suffix in SUFFIXES
             if suffix != missing and os.path.exists(stem + suffix)]
    return f"beside it there is {', '.join(found)}" if found else None


@contextlib.contextmanager
def decoding(path: PathLike, problem: str, remedy: Optional[str] = None) -> Iterator[None]:
    """Tell what somebody else's decoder raises on a file as an :class:`InputError`: "PATH: PROBLEM (what
    it says); REMEDY". On damaged bytes decoders raise nearly any kind of error, so the block holds
    nothing but the call.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"cannot be read ({error.strerror})", file=path) from error
        raise InputError(f"{problem} ({str(error)[:200] or type(error).__name__})", file=path,
                         remedy=remedy) from error


def read_text(path: PathLike) -> str:
    """The content of a UTF-8 text file (byte-order marks are dropped, also those between files that
    were joined), with :func:`read_bytes`'s errors.
    """
    content, remedy = read_bytes(path), "save it as UTF-8"
    if b"\0" in content:
        raise InputError("is not UTF-8 text (zero bytes, as UTF-16 has them)", file=path, remedy=remedy)
    try:
        return content.decode().replace("\ufeff", "")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text ({error})", file=path, remedy=remedy) from error


def read_json(path: PathLike, kind: str, remedy: str) -> Dict[str, Any]:
    """The JSON object in a file, with :func:`read_bytes`'s errors; where it holds none, an
    :class:`InputError` says that it is no ``kind``, and the ``remedy``.
    """
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no {kind} (not valid JSON)", file=path, remedy=remedy) from error
    if not isinstance(content, dict):
        raise InputError(f"is no {kind}", file=path, remedy=remedy)
    return content


def sha256_of(path: PathLike) -> str:
    """SHA-256 of a file's bytes in hexadecimal, 1 GB in about a second; an :class:`InputError`
    names a file that cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", file=path) from error
    return digest.hexdigest()


def changed_keys(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> List[str]:
    """Keys whose values differ between what a file recorded and what is asked for, both as JSON
    holds them: the one way to see whether results belong to these settings.
    """
    asked = json.loads(json.dumps(asked))
    return [key for key in {**recorded, **asked} if recorded.get(key) != asked.get(key)]


@contextlib.contextmanager
def locked(path: PathLike, what: str, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``, made for it and removed afterwards; a dead
    holder's lock is free. ``wait`` for it where another process holds it.

    Raises
    ------
    InputError
        When it cannot be made, or another process holds it and does not end within
        :data:`PATIENCE_S`, naming ``what`` and that process.
    """
    folder, patient_until = os.path.dirname(os.fspath(path)) or ".", time.monotonic() + PATIENCE_S
    while True:
        try:
            os.makedirs(folder, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise write_error(error, folder) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            if time.monotonic() < patient_until:
                time.sleep(0.05)
                continue
            raise InputError(f"{what} is being written by process {holder}", file=path,
                             remedy="wait until it has ended") from error
        if _same_file(descriptor, path):
            break
        os.close(descriptor)  # its holder removed the file between our open and our lock
    _held.add(descriptor)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds, and nobody learns who has it
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        if descriptor in _held:  # not in a forked process
            _held.remove(descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.close(descriptor)


def lock_path(folder: PathLike, name: str) -> str:
    """The lock of :func:`staging`."""
    return os.path.join(folder, f".{name}.lock")


@contextlib.contextmanager
def staging(folder: PathLike, name: str, what: str) -> Iterator[str]:
    """An empty hidden folder inside of ``folder`` for files that get their names there together,
    under a lock (:func:`locked`); removed afterwards, and what a killed process left of it before.
    """
    hidden = os.path.join(folder, f".{name}.unfinished")
    with locked(lock_path(folder, name), what):
        shutil.rmtree(hidden, ignore_errors=True)
        os.makedirs(hidden)
        try:
            yield hidden
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def _same_file(descriptor: int, path: PathLike) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
