"""The cosine transforms of series, made a few rows at a time, against scipy's, and what they take while they run."""

import numpy as np
import pytest
import torch
from scipy.fft import dct

from fedact.compression.transform.matrices import Column, cosine_matrix


@pytest.mark.parametrize("size", [33, 65, 256, 257])
@pytest.mark.parametrize("channels", [1, 40])
def test_a_series_is_transformed_by_the_whole_weighted_matrix(size, channels):
    x = torch.randn(3, size, channels, generator=torch.Generator().manual_seed(0))
    forward, back = Column(size, -0.5), Column(size, 0.5, transposed=True)
    frequencies = np.arange(size) * 7 / size
    expected = dct(x.double().numpy(), axis=1, norm="ortho") * (1 + frequencies[:, None] ** 2) ** -0.5
    out = torch.empty_like(x)
    assert forward.product(x, out) is out
    np.testing.assert_allclose(out, expected, atol=1e-5)
    torch.testing.assert_close(back.product(out, None), x, atol=1e-5, rtol=1e-5)
    rows = torch.tensor([0, size - 1, 5])
    expected_rows = (cosine_matrix(size) * (1 + frequencies[:, None] ** 2) ** 0.5).T[rows]
    np.testing.assert_allclose(back[rows], expected_rows, atol=1e-6)
