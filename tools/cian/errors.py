"""The exception for wrong input, alone or many: it names the file, the field and the remedy."""
from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from typing import Callable, Iterator, List, Optional, Sequence, Union

from cian.environment import reserve_for_products
from cian.processes import end_with_starter

PathLike = Union[str, "os.PathLike[str]"]


class InputError(Exception):
    """Wrong input of a user: a file, a value or a combination of them.

    It is no ``ValueError``, so that code that catches what a parser raises lets it pass.

    Parameters
    ----------
    problem : str
        What is wrong, in one sentence without a full stop, naming the offending value.
    file : path, optional
        The file (or folder) in which it is wrong.
    field : str, optional
        The key, flag, class name, parameter name or record in that file.
    remedy : str, optional
        What to do about it.

    ``str(error)`` is one line: ``<file>: <field>: <problem>; <remedy>``.
    """

    def __init__(self, problem: str, *, file: Optional[PathLike] = None, field: Optional[str] = None,
                 remedy: Optional[str] = None) -> None:
        self.problem, self.field, self.remedy = problem, field, remedy
        self.file = None if file is None else os.fspath(file)
        where = [part for part in (self.file, field) if part]
        message = ": ".join([*where, problem]) + (f"; {remedy}" if remedy else "")
        super().__init__(" ".join(message.split()))

    def __reduce__(self):
        rebuild = functools.partial(InputError, file=self.file, field=self.field, remedy=self.remedy)
        return rebuild, (self.problem,)


class Problems(InputError):
    """Several wrong inputs at once; ``.problems`` holds an :class:`InputError` for each, and the
    message quotes the first ones.
    """

    quoted = 3

    def __init__(self, problems: Sequence[InputError], *, file: Optional[PathLike] = None,
                 remedy: Optional[str] = None) -> None:
        self.problems: List[InputError] = list(problems)
        quoted = " | ".join(str(problem) for problem in self.problems[:self.quoted])
        more = len(self.problems) - self.quoted
        count = f"{len(self.problems)} problems: " if len(self.problems) > 1 else ""
        super().__init__(count + quoted + (f" | and {more} more" if more > 0 else ""), file=file,
                         remedy=remedy)

    def __reduce__(self):
        return functools.partial(Problems, file=self.file, remedy=self.remedy), (self.problems,)


@contextlib.contextmanager
def collecting(problems: List[InputError]) -> Iterator[None]:
    """Take what is wrong in the block into ``problems``, where it would be raised."""
    try:
        yield
    except InputError as error:
        problems.extend(error.problems if isinstance(error, Problems) else [error])


def write_error(error: OSError, path: PathLike) -> InputError:
    """What to tell the user when ``path`` could not be written."""
    return InputError(
        f"cannot be written ({error.strerror or error})", file=path,
        remedy="check the folder's permissions and free space; nothing was left under this name")


class MachineError(RuntimeError):
    """What the machine failed at, such as a process that was killed for lack of memory: told in one line."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or MXNet (which is not imported here) could not get the memory, or the thread,
    that they asked for.
    """
    signs = {"MemoryError": [""], "RuntimeError": ["can't start new thread"],
             "MXNetError": ["allocat", "bad_alloc", "resource temporarily unavailable"]}
    return any(sign in str(error).lower() for kind in type(error).__mro__
               for sign in signs.get(kind.__name__, ()))


def _told(error: BaseException) -> Optional[str]:
    """One line for what is no defect of the program; None for what is."""
    if isinstance(error, MachineError):
        return str(error)
    if is_out_of_memory(error):
        return ("there is not enough memory; use fewer processes (run.workers, run.processes), smaller "
                "batches or smaller images")
    if isinstance(error, OSError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2)
                 if isinstance(name, (str, bytes))]
        return ": ".join([*names, f"{error.strerror or error} (the system's error {error.errno})"])
    return None


def run_tool(main: Callable[[], Optional[int]]) -> None:
    """Run an entry point and end the process as a command-line user expects.

    Returns of ``main`` are exit codes (``None`` is 0). An :class:`InputError` prints ``error: ...``
    on standard error as one line and exits 2, and so does an error of the system or a lack of
    memory, with 1; an interrupt exits 130; a reader that closed our output early (``| head``) ends it
    quietly with 141. Any other exception is a defect and keeps its traceback. Names that the
    terminal's encoding does not have are printed with escapes, and a line is written in one piece
    (under PYTHONUNBUFFERED too), for processes of a job may share a terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", write_through=False,
                               line_buffering=stream.line_buffering or stream.write_through)
    end_with_starter()
    try:
        reserve_for_products()
        code = main() or 0
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        # or the interpreter's flush at exit fails again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        if is_out_of_memory(error):  # MXNet's own end would fail too, in a traceback
            sys.stderr.flush()
            os._exit(1)
        sys.exit(1)
