"""The one exception for wrong input: it names the file, the field and the remedy."""
from __future__ import annotations

import os
import sys
from typing import Callable, Optional, Union

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
        return _rebuild, (self.problem, self.file, self.field, self.remedy)


def _rebuild(problem, file, field, remedy):
    return InputError(problem, file=file, field=field, remedy=remedy)


def run_tool(main: Callable[[], Optional[int]]) -> None:
    """Run an entry point and end the process as a command-line user expects.

    Returns of ``main`` are exit codes (``None`` is 0). An :class:`InputError` prints ``error: ...``
    on standard error as one line and exits 2; an interrupt exits 130; a reader that closed our
    output early (``| head``) ends it quietly with 141. Any other exception is a defect and keeps
    its traceback.
    """
    end_with_starter()
    try:
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
