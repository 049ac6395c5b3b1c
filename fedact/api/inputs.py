"""What a trained model is asked about: arrays such as the run's, checked and made into the network's inputs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fedact.config.errors import ConfigError
from fedact.data import Preprocessing
from fedact.data.items import as_array
from fedact.data.kinds import checked_inputs, is_picture
from fedact.training.experiment import Experiment


@dataclass(frozen=True)
class ArrayInputs:
    """Makes a network's inputs of arrays, tensors or lists of the kind that its run was given.

    preprocessing: the run's. shape, dtype: of one of its examples, as they are kept (see ``kinds.checked_inputs``).
    """

    preprocessing: Preprocessing
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __call__(self, x: Any) -> Float[Tensor, "examples ..."]:
        """Return the inputs of examples (examples, ...); raises ConfigError for arrays of another kind than the run's."""
        array = as_array(x, "x")
        kept = checked_inputs(self._narrowed(array), "x")
        one = (1, *self.shape)
        alike = (
            kept.shape[-1] == self.shape[-1] if is_picture(one) and is_picture(kept.shape) else kept.shape[1:] == self.shape
        )
        if not alike or kept.dtype != self.dtype:
            raise ConfigError(
                f"x is {array.dtype} {array.shape}: the run's examples are {self.dtype} {self.shape}, and x is several"
            )
        return self.preprocessing(kept)

    def _narrowed(self, x: np.ndarray) -> np.ndarray:
        """Return whole numbers of a wide type, whose values alone do not say so, with the range of the run's pictures."""
        wide = x.dtype.kind == "i" or (x.dtype.kind == "u" and x.dtype.itemsize > 2)
        if self.dtype.kind != "u" or not wide or not x.size or x.min() < 0 or x.max() > np.iinfo(self.dtype).max:
            return x
        return x.astype(self.dtype)


def array_inputs(experiment: Experiment) -> ArrayInputs:
    """Return what makes inputs of arrays such as a run's examples."""
    images = experiment.train.images
    return ArrayInputs(experiment.preprocessing, images.shape[1:], images.dtype)
