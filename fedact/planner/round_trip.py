"""A method that keeps what another one makes of a tensor: its error in a step whose tensors are all whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from fedact.compression import Compressed, Method, State, Traits
from fedact.compression.exact import Exact, Identity
from fedact.compression.method import NO_STATE

KnownSpectra = dict[str, tuple[Tensor, Any]]
"""By layer, its input and what ``Method.spectra`` returned for it."""


@dataclass(frozen=True)
class RoundTrip(Identity):
    """Saves a tensor's reconstruction as it is: whatever is rematerialized from it needs no decoding."""

    traits: ClassVar[Traits] = replace(Exact.traits, source="none: for measuring", keeps_input=False)

    method: Method
    name: str
    known: KnownSpectra = field(compare=False, repr=False)

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        return Compressed(tuple(self.method.reconstructions(x, [self.method], self._spectra(x))))

    def _spectra(self, x: Tensor) -> Any:
        """Return what the method's reconstructions start from: every level decomposes the same input."""
        seen, found = self.known.get(self.name, (None, None))
        if seen is None or seen.shape != x.shape or not seen.equal(x):
            found = self.method.spectra(x)
            self.known[self.name] = x.clone(), found
        return found

    def for_dimensions(self, dimensions: int) -> Method:
        return replace(self, method=self.method.for_dimensions(dimensions))


def round_trips(methods: Mapping[str, Method], known: KnownSpectra) -> Mapping[str, Method]:
    """Return a step's methods with what each makes of its input in place of the input."""
    return {
        name: method if method.traits.keeps_input else RoundTrip(method, name, known, derive=method.recompute)
        for name, method in methods.items()
    }
