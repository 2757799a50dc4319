"""Label maps of a whole list that cannot be meant: one check for every stage that makes or takes them."""
from __future__ import annotations

import sys
from typing import List, Sequence

import numpy as np

from cian.data.classes import IGNORE
from cian.errors import InputError, PathLike


def check_pixels(counts: np.ndarray, class_names: Sequence[str], what: str, file: PathLike) -> List[str]:
    """Look at the pixels of all label maps together.

    Parameters
    ----------
    counts : (256,) pixels by value.
    class_names : names of the classes, background first.
    what : 'seeds', 'the truth' and so on, for the messages.

    Returns
    -------
    What is odd about them and can still be meant, a sentence each.

    Raises
    ------
    InputError
        Nothing useful can follow: all pixels are ignored, or not one has a class.
    """
    foreground = counts[1:len(class_names)]
    if not foreground.any():
        rest = "background" if counts[0] else "ignored"
        remedy = "look at the maps, and at the thresholds and files that they were made from"
        if counts[0] and counts[IGNORE]:
            rest = f"background ({counts[0]}) or ignored ({counts[IGNORE]})"
            remedy += f"; in masks of 0 and {IGNORE} write the number of the class for {IGNORE}"
        raise InputError(f"not one pixel of {what} has a class, all are {rest}", file=file, remedy=remedy)
    odd = []
    if not counts[0]:
        odd.append(f"not one pixel of {what} is {class_names[0]}")
    if np.count_nonzero(counts[:len(class_names)]) == 1:
        odd.append(f"every pixel of {what} that is not ignored is {class_names[int(counts[:-1].argmax())]}")
    return odd


def oddities(counts: np.ndarray, class_names: Sequence[str], what: str, file: PathLike = "") -> List[str]:
    """:func:`check_pixels` where no stage follows: what it would refuse is odd too."""
    try:
        return check_pixels(counts, class_names, what, file)
    except InputError as error:
        return [error.problem]


def tell(odd: Sequence[str], file: PathLike) -> None:
    """Print what is odd, a line each, on standard error."""
    for text in odd:
        print(f"warning: {file}: {text}", file=sys.stderr)
