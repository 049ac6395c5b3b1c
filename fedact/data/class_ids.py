"""Classes of ids: what a data set calls its classes need not be 0, 1, 2, ..."""

import logging
from collections.abc import Iterable, Sequence
from itertools import groupby

MOST_SAID = 20
"""More ids are said by their ends."""

log = logging.getLogger(__name__)


def classes_of_ids(ids: Iterable[int], what: str) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return the class of each id, in their order, and the classes' names: their ids, or none where each is its own class.

    Ids with gaps are logged; a class for each number up to the largest would be one that nothing is of. what: has the ids,
    for the log.

    >>> classes_of_ids([30, 10, 20, 10], "a data set")
    ({10: 0, 20: 1, 30: 2}, ('10', '20', '30'))
    >>> classes_of_ids([1, 0], "a data set")
    ({0: 0, 1: 1}, ())
    """
    known = sorted(set(ids))
    classes = {number: place for place, number in enumerate(known)}
    if known == list(range(len(known))):
        return classes, ()
    said = ranges(known) if len(known) <= MOST_SAID else f"{known[0]} to {known[-1]} with gaps"
    log.info(f"{what} has the ids {said}: they are classes 0 to {len(known) - 1}, named by their ids")
    return classes, tuple(map(str, known))


def ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as words.

    >>> ranges([0, 1, 2, 255])
    '0 to 2, 255'
    """
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
