"""What a step with a method's reconstructions in place sees is what the method itself makes of each input."""

import pytest
import torch

from fedact.compression import make_method
from fedact.planner.round_trip import KnownSpectra, round_trips


@pytest.mark.parametrize("bits", [32, 8])
def test_levels_share_an_inputs_decomposition_and_no_other_inputs(bits):
    generator, known = torch.Generator().manual_seed(0), KnownSpectra()
    inputs = [torch.randn(4, 30, 9, generator=generator), torch.randn(4, 30, 9, generator=generator)]
    for x in (*inputs, inputs[0]):
        for ranks in ("4x12x9", "2x20x5", "1x1x1"):
            method = make_method(f"hosvd:ranks={ranks},bits={bits}")
            codec = round_trips({"layer": method}, known)["layer"]
            found, expected = codec.reconstruct(codec.compress(x)), method.reconstruct(method.compress(x))
            assert (found - expected).norm() < (1e-5 if bits == 32 else 3e-2) * x.norm()
    assert list(known) == ["layer"]
    assert known["layer"][0].equal(inputs[0])
    assert known["layer"][0] is not inputs[0]
