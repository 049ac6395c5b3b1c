"""One decomposition at the largest ranks holds those at all smaller ones: its leading columns, and a corner of its core."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from fedact.compression.lowrank.algebra import Spectrum, compose, factor, project
from fedact.compression.lowrank.bit_depth import BitDepth

Spectra = Mapping[int, Spectrum]
"""By mode, of the full tensor."""


def nested_reconstructions(
    x: Tensor, spectra: Spectra, ranks: Sequence[Mapping[int, int]], bit_depth: BitDepth
) -> Iterator[Tensor]:
    """Yield x from the core and factors of each of some ranks, by mode: the HOSVD as published.

    Fewer bits than 32 round the largest core and factors, once: what rounding adds to smaller ones is about the same.
    """
    most = {mode: max(each[mode] for each in ranks) for mode in spectra}
    factors = {mode: factor(x, mode, spectra[mode], rank) for mode, rank in most.items()}
    parts = [project(x, factors), *factors.values()]
    core, *rounded = bit_depth.unpack(bit_depth.pack(parts), [part.shape for part in parts], x.dtype)
    for each in ranks:
        corner = core[tuple(slice(each.get(mode)) for mode in range(x.dim()))]
        columns = {mode: rounded[place][:, : each[mode]] for place, mode in enumerate(factors)}
        yield compose(corner.contiguous(), columns)
