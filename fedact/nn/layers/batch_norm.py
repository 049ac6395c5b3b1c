"""Trained batch norms that save their input compressed by a method."""

from typing import ClassVar

from torch import Tensor, nn

from fedact.compression.operations import Normalization
from fedact.nn.layers.base import FixedStatistics, noted
from fedact.nn.layers.compressed import CodecLayer, input_compressed
from fedact.torch_private import NormWithStatistics


class CompressedBatchNorm(FixedStatistics, CodecLayer, NormWithStatistics):
    """Batch norm with its running statistics and trained scale and shift, which saves its input compressed."""

    @noted
    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        assert self.running_mean is not None
        assert self.running_var is not None
        operation = Normalization(self.running_mean, self.running_var, self.eps)
        weight, bias = self.weight, self.bias
        if not self.compresses(x, weight):
            return operation.forward(x, weight, bias)
        return input_compressed(x, weight, bias, self.codec, operation, casts=False)


class CompressedBatchNorm1d(CompressedBatchNorm, nn.BatchNorm1d):
    """``CompressedBatchNorm`` of series, or of features."""

    plain: ClassVar[type[nn.Module]] = nn.BatchNorm1d


class CompressedBatchNorm2d(CompressedBatchNorm, nn.BatchNorm2d):
    """``CompressedBatchNorm`` of pictures."""

    plain: ClassVar[type[nn.Module]] = nn.BatchNorm2d
