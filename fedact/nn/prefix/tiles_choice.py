"""How many tiles a frozen prefix is run in and where tiling ends: the peak of every choice, and the least."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from fedact.nn.prefix.split import Split
from fedact.nn.prefix.tiles_bytes import peak_bytes
from fedact.nn.prefix.tiles_programs import Programs, Tile, products_of, programs_for

MOST = 8
"""The most tiles along each axis that are tried."""


@dataclass(frozen=True)
class Tiling:
    """A way to run a prefix, and what it takes.

    tiles: along each axis. steps: how many of the prefix's first steps run in tiles. last: the module or function they end
    with. peak_bytes: the most bytes alive, the images left out. recomputed: multiplications that are done again because
    tiles overlap, as a share of the prefix's. exact: whether the bytes of all that the prefix computes are known.
    """

    tiles: int
    steps: int
    last: str
    peak_bytes: int
    recomputed: float
    exact: bool

    @property
    def rank(self) -> tuple[int, float, int]:
        """What the best tiling has the least of: bytes, then multiplications, then tiles."""
        return self.peak_bytes, self.recomputed, self.tiles


def tilings(
    split: Split, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, counts: Iterable[int] = range(1, MOST + 1)
) -> list[Tiling]:
    """Return the ways to run a prefix with their peaks, predicted from shapes and lifetimes.

    shape: of a batch of images. counts: of tiles along each axis; one tile is the whole prefix, with norms and activations
    in place. Empty but for that one where the first step cannot be tiled.
    """
    examples, *one = shape
    programs = programs_for(split, tuple(one), dtype)
    return [tiling for count in counts for tiling in tilings_of(programs, examples, dtype.itemsize, count)]


def tilings_of(programs: Programs, examples: int, itemsize: int, count: int) -> list[Tiling]:
    """Return what ``tilings`` does for one number of tiles."""
    stages = [0] if count == 1 else programs.stages()
    return [_tiling(programs, stage, count, itemsize * examples, examples) for stage in stages]


def least_tiling(programs: Programs, examples: int, itemsize: int, counts: Iterable[int]) -> Tiling | None:
    """Return the least of what ``tilings`` returns, of which only those are computed that may be it; None of none.

    Of equal peaks, that with the least to compute again.
    """
    best, element = None, itemsize * examples
    for count in counts:
        stages = [0] if count == 1 else programs.stages()
        bounds = [(_bound(programs, stage, count, element), stage) for stage in stages]
        for bound, stage in sorted(bounds):
            if best is None or (
                bound <= best.peak_bytes and _middle_peak(programs, stage, count, element, examples) <= best.peak_bytes
            ):
                tiling = _tiling(programs, stage, count, element, examples)
                best = tiling if best is None or tiling.rank < best.rank else best
    return best


def chosen_stage(programs: Programs, tiles: int, itemsize: int) -> int | None:
    """Return after how many steps so many tiles end: where the peak of one example is least; None where none can be."""
    if (tiles, itemsize) not in programs.chosen:
        best = least_tiling(programs, 1, itemsize, [tiles])
        programs.chosen[tiles, itemsize] = None if best is None else best.steps
    return programs.chosen[tiles, itemsize]


def tiling_bytes(programs: Programs, tiles: int, itemsize: int, examples: int) -> int:
    """Return the most bytes alive in so many tiles of so many examples; raises ValueError where none can be."""
    stage = chosen_stage(programs, tiles, itemsize)
    if stage is None:
        raise ValueError(f"nothing can be run in {tiles} x {tiles} tiles")
    return _tiling(programs, stage, tiles, itemsize * examples, examples).peak_bytes


def _bound(programs: Programs, stage: int, count: int, element: int) -> int:
    """Return bytes that a choice hardly goes below: the assembled map and the largest map's share of a tile."""
    if stage == 0:
        return 0
    maps = [programs.steps.shape(step.output).elements for step in programs.steps.steps[:stage]]
    return (maps[-1] + max(maps) // count**2) * element


def _middle_peak(programs: Programs, stage: int, count: int, element: int, examples: int) -> int:
    """Return bytes that a choice does not go below: those of one tile beside the assembled map, and those of the rest."""
    if stage == 0 or count == 1:
        return 0
    size = programs.steps.shape(programs.steps.steps[stage - 1].output).elements * element
    middle = peak_bytes(programs.middle(stage, count).tasks, {}, element, examples)
    return max(size + middle, programs.rest_peak(stage, element, examples))


def _tiling(programs: Programs, stage: int, count: int, element: int, examples: int) -> Tiling:
    """Return what a choice takes; element: bytes of one element of all examples."""
    steps, peak = programs.steps, programs.rest_peak(stage, element, examples)
    if stage == 0:
        return Tiling(1, 0, "", peak, 0.0, steps.known)
    last, node = steps.steps[stage - 1].output, steps.steps[stage - 1].node
    tiles = list(programs.tiles(stage, count))
    peak = max(peak, _stage_peak(tiles, steps.shape(last).elements * element, element, examples))
    again = sum(products_of(tile.tasks) for tile in tiles) - sum(programs.products[:stage])
    name = str(node.target) if node.op == "call_module" else node.name
    return Tiling(count, stage, name, peak, again / max(1, sum(programs.products)), steps.known)


def _stage_peak(tiles: Sequence[Tile], size: int, element: int, examples: int) -> int:
    """Return the most bytes alive while the tiles of a stage are computed and assembled; size: of the assembled map."""
    first, *others = tiles
    peaks = {tile.tasks: peak_bytes(tile.tasks, {}, element, examples) for tile in tiles}
    # The assembled map is allocated once the first tile says of which type it is.
    assembled = size + first.tasks[-1].output * element
    return max(peaks[first.tasks], assembled, *(size + peaks[tile.tasks] for tile in others))


def least_tilings(
    split: Split, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, counts: Iterable[int] = range(1, MOST + 1)
) -> list[Tiling]:
    """Return, for each number of tiles, the way that ``Plan.tiles`` with this number runs: that with the least peak."""
    examples, *one = shape
    programs = programs_for(split, tuple(one), dtype)
    found = [least_tiling(programs, examples, dtype.itemsize, [count]) for count in counts]
    return [tiling for tiling in found if tiling is not None]


def best_tiles(split: Split, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    """Return the number of tiles along each axis with the least peak; 0 where the whole takes no more.

    >>> from torch import nn
    >>> from fedact.nn.prefix.split import split
    >>> layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3, 2), nn.Flatten()
    >>> model = nn.Sequential(*layers, nn.Linear(4 * 14 * 14, 2))
    >>> _ = model[:4].requires_grad_(False)
    >>> best_tiles(split(model), (1, 3, 31, 31))
    7
    """
    examples, *one = shape
    best = least_tiling(programs_for(split, tuple(one), dtype), examples, dtype.itemsize, range(1, MOST + 1))
    return 0 if best is None or best.tiles == 1 else best.tiles
