"""Flower's arrays are the tensors that numpy's own reader returns."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedact.federation.arrays import of_bytes, plain, record_from, record_of, tensor_of, tensors_of

TENSORS = [
    torch.randn(3, 4, 1, 2), torch.randn(5), torch.tensor(1.5), torch.empty(0, 3), torch.arange(6).view(2, 3),
    torch.tensor([float("nan"), -0.0, float("inf")]), torch.randn(4, dtype=torch.float64), torch.tensor([True, False]),
    torch.randn(4).half(), torch.randn(3, 4).T, torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
]  # fmt: skip


@pytest.mark.parametrize("tensor", TENSORS)
def test_an_array_is_the_tensor_it_was_made_from(tensor):
    array = ArrayRecord({"it": tensor})["it"]
    found = tensors_of({"it": array})["it"]
    assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
    assert np.array_equal(found.numpy(), array.numpy(), equal_nan=found.is_floating_point())
    # A copy, which may be changed.
    found.zero_()
    assert np.array_equal(array.numpy(), tensor.numpy(), equal_nan=tensor.is_floating_point())


@pytest.mark.parametrize("tensor", TENSORS)
def test_a_record_is_what_flower_makes_of_the_same_tensors(tensor):
    found, expected = record_of({"it": tensor}), ArrayRecord({"it": tensor})
    assert found == expected
    assert found["it"].data == expected["it"].data


@pytest.mark.parametrize("tensor", TENSORS)
def test_a_record_shares_the_bytes_it_was_sent_with(tensor):
    sent = {name: (*rest, content.copy()) for name, (*rest, content) in plain(record_of({"it": tensor})).items()}
    array = record_from(sent)["it"]
    own, shared = tensor_of(array), tensor_of(array, copy=False)
    lasting = tensor_of(of_bytes(array), copy=False)
    assert np.array_equal(shared.numpy(), tensor.numpy(), equal_nan=tensor.is_floating_point())
    sent["it"][3][:] = 0
    assert np.array_equal(own.numpy(), tensor.numpy(), equal_nan=tensor.is_floating_point())
    assert not tensor.is_contiguous() or not tensor.numel() or not shared.any()
    assert np.array_equal(lasting.numpy(), tensor.numpy(), equal_nan=tensor.is_floating_point())


def test_what_is_described_otherwise_is_read_by_numpy():
    good = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
    for shape, dtype in (((3, 2), "float32"), ((2, 3), "int32")):
        lying = Array(dtype, shape, good.stype, good.data)
        assert torch.equal(tensor_of(lying), torch.from_numpy(good.numpy()))
    for data in (good.data[:-1], good.data[:20], b"", b"x" * 200):
        with pytest.raises((ValueError, EOFError)):
            tensor_of(Array("float32", (2, 3), good.stype, data))
    with pytest.raises(TypeError):
        tensor_of(Array("float32", (2, 3), "other", good.data))
