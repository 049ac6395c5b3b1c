"""Which rows (or columns) of its input an operation with a window reads for some rows of its output, padding included."""

from math import inf
from typing import NamedTuple


class Span(NamedTuple):
    """Rows, or columns, of a map: from ``start`` up to ``stop``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def hull(self, other: "Span | None") -> "Span":
        """Return the least span that holds both; other: None for nothing.

        >>> Span(2, 4).hull(Span(5, 9)), Span(2, 4).hull(None)
        (Span(start=2, stop=9), Span(start=2, stop=4))
        """
        return self if other is None else Span(min(self.start, other.start), max(self.stop, other.stop))


class Reach(NamedTuple):
    """The rows of an input that some rows of an output need, and the rows of padding before and after them.

    Only the true border of a map is padded: between tiles the neighbours' rows are taken.
    """

    span: Span
    before: int = 0
    after: int = 0


class Shift(NamedTuple):
    """One padding of both sides that does for two: the output has ``start`` rows too many before, and some after."""

    padding: int
    start: int


class Window(NamedTuple):
    """A convolution's or pooling's window along one axis; before, after: rows of padding. rounds_up: pooling's ceil_mode."""

    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    rounds_up: bool = False
    largest_padding: float = inf

    @property
    def extent(self) -> int:
        """Rows from the window's first to its last.

        >>> Window(kernel=3, dilation=2).extent
        5
        """
        return self.dilation * (self.kernel - 1) + 1

    def size(self, rows: int) -> int:
        """Return the number of output rows for so many input rows; below 1 where PyTorch refuses them.

        >>> Window(kernel=3, stride=2, before=1, after=1).size(7)
        4
        """
        room = rows + self.before + self.after - self.extent
        if not self.rounds_up:
            return room // self.stride + 1
        size = -(-room // self.stride) + 1
        # The last window begins within the input or the padding before it.
        return size - 1 if (size - 1) * self.stride >= rows + self.before else size

    def reach(self, out: Span, rows: int) -> Reach:
        """Return what the output rows ``out`` need of an input of so many rows.

        >>> Window(kernel=3, stride=1, before=1, after=1).reach(Span(0, 4), 8)
        Reach(span=Span(start=0, stop=5), before=1, after=0)
        """
        start = out.start * self.stride - self.before
        stop = (out.stop - 1) * self.stride - self.before + self.extent
        return Reach(Span(max(start, 0), min(stop, rows)), max(0, -start), max(0, stop - rows))

    def shift(self, before: int, after: int) -> Shift | None:
        """Return the one padding of both sides whose output holds that of these two; None where it would be too large.

        >>> Window(kernel=3, stride=2).shift(0, 1), Window(kernel=3).shift(1, 0)
        (Shift(padding=2, start=1), Shift(padding=1, start=0))
        """
        start = max(0, -(-(after - before) // self.stride))
        padding = before + start * self.stride
        return Shift(padding, start) if padding <= self.largest_padding else None

    def size_padded_alike(self, rows: int, padding: int) -> int:
        """Return the number of output rows for so many input rows and rows of padding on both sides; no partial windows."""
        return (rows + 2 * padding - self.extent) // self.stride + 1


def tile_spans(rows: int, tiles: int) -> list[Span]:
    """Return the spans of so many tiles, or fewer where there are fewer rows: of equal length but for one row.

    >>> [(span.start, span.stop) for span in tile_spans(7, 3)]
    [(0, 2), (2, 4), (4, 7)]
    """
    count = min(tiles, rows)
    return [Span(rows * tile // count, rows * (tile + 1) // count) for tile in range(count)]
