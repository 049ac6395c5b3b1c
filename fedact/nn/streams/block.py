"""A block of a model that runs in streams: its modules, and when they run so."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from fedact.config.errors import ConfigError
from fedact.nn.layers.compressed import autocast_type
from fedact.nn.layers.function import is_recorded, runs_plain
from fedact.nn.streams.arithmetic import TENSORS, Geometry, StageSettings
from fedact.nn.streams.function import Rooms, StreamedBlock, is_small, output, weights
from fedact.nn.streams.pooled import PooledStage
from fedact.nn.streams.spare import Spare
from fedact.torch_private import is_observed


class StageModules(NamedTuple):
    """The modules of a stage."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d | None
    activation: nn.Module | None

    def tensors(self) -> list[Tensor | None]:
        """Return the stage's tensors as they are now (see ``arithmetic.TENSORS``)."""
        norm = self.norm
        of_norm = [None] * 4 if norm is None else [norm.running_mean, norm.running_var, norm.weight, norm.bias]
        return [self.convolution.weight, self.convolution.bias, *of_norm]


class Block:
    """A block in streams: its first module computes all of it, the others hand its output on.

    That is so within a call of the module that runs all of them, which counts its calls in ``calls``; alone they are the
    fast engine's layers, and so they are where a hook may see a tensor between them, under autocast, in traces, in the
    transforms of ``torch.func``, and while ``is_whole``. inside: all modules between which a wide tensor goes,
    containers too. spare: what its maps may take beside the room. decodes: whether its input may
    be. pooling: of its only stage's output; None where the
    stages are an inverted residual's. examples: for which the room is meant, fewer have a share of it; 0 for any number.
    """

    def __init__(
        self, stages: Sequence[StageModules], inside: Sequence[nn.Module], room: int, pooling: nn.Module | None = None
    ) -> None:
        self.stages, self.inside, self.room = tuple(stages), tuple(inside), room
        self.spare, self.decodes, self.examples = Spare(), False, 0
        self.maxima = pooling if isinstance(pooling, nn.MaxPool2d) else None
        self.calls, self.is_whole, self.is_alone = 0, False, False
        self.geometry = _geometry([StageSettings.of(*stage) for stage in self.stages], pooling)
        self._output: ref[Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_output": None, "calls": 0, "is_whole": False, "is_alone": False}

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that compute it, in their order."""
        stages = [module for stage in self.stages for module in stage if module is not None]
        return stages if self.maxima is None else [*stages, self.maxima]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The stages' tensors as they are now (see ``arithmetic.TENSORS``)."""
        return tuple(tensor for stage in self.stages for tensor in stage.tensors())

    @property
    def is_trained(self) -> bool:
        """Whether any of its convolutions has trainable parameters."""
        return any(parameter.requires_grad for stage in self.stages for parameter in stage.convolution.parameters())

    def rooms(self, size: int, examples: int = 0) -> Rooms:
        """Return the room for an input of so many bytes.

        Of fewer examples than the room is meant for no more channels at a time: they would take what the whole ones leave.
        """
        room = self.room * min(examples, self.examples) // self.examples if examples and self.examples else self.room
        frozen, forward, backward = (room + int(share * size) for share in self.spare)
        is_beside = self.decodes and is_small(size, backward)
        return Rooms(frozen, forward, backward - size if is_beside else backward, backward)

    def run(self, x: Tensor, codec: Any) -> Tensor | None:
        """Return the block's output for its input, None where its layers have to run one by one."""
        self._output = None
        tensors = self.tensors
        if not (self.is_alone or self._may_run(x, tensors)):
            return None
        if is_recorded(x, *tensors):
            y: Tensor = StreamedBlock.apply(x, codec, self.geometry, self.rooms(x.nbytes, len(x)), *tensors)
        else:
            y = self.frozen_output(x)
        self._output = None if self.is_alone else ref(y)
        return y

    def run_alone(self, x: Any, entry: nn.Module) -> Tensor | None:
        """Return what its first module does in a container that does nothing else; None where the layers have to run."""
        self.calls += 1
        try:
            if not self._may_run(x, self.tensors):
                return None
            self.is_alone = True
            y: Tensor = entry(x)
            return y
        finally:
            self.calls, self.is_alone = self.calls - 1, False

    @torch.no_grad()
    def frozen_output(self, x: Tensor, room: int | None = None) -> Tensor:
        """Return the block's output for an input in streams, without gradients, whatever runs around it.

        room: for its wide maps; None for all that it may take where nothing is kept.
        """
        tensors, room = self.tensors, self.rooms(x.nbytes, len(x)).frozen if room is None else room
        return output(x, self.geometry, tensors, self.geometry.step(x.shape, weights(tensors), room))

    def hands_on(self, x: Any, is_last: bool) -> bool:
        """Tell whether x is the block's output on its way through the modules after the first; the last one lets it go.

        Raises ConfigError where something between the modules put another tensor in its place.
        """
        output = None if self._output is None else self._output()
        if output is None:
            return False
        if output is not x:
            raise ConfigError(
                "a block that runs in streams (room=) got another tensor between its layers than its own output: "
                "compress without room"
            )
        if is_last:
            self._output = None
        return True

    def _may_run(self, x: Any, tensors: tuple[Tensor | None, ...]) -> bool:
        """Tell whether the whole block may run at once on x: nothing else sees its inner tensors, and no norm is trained."""
        if self.is_whole or not self.calls or type(x) not in (Tensor, nn.Parameter):
            return False
        if torch.compiler.is_compiling() or runs_plain():
            return False
        if x.dim() != 4 or x.numel() == 0 or x.layout is not torch.strided or not x.is_floating_point():
            return False
        if x.shape[1] != self.stages[0].convolution.in_channels or autocast_type(x) is not None:
            return False
        kind = x.dtype, x.device
        if any(tensor is not None and (tensor.dtype, tensor.device) != kind for tensor in tensors):
            return False
        norms = [tensors[start + 2 : start + TENSORS] for start in range(0, len(tensors), TENSORS)]
        return not any(is_recorded(*norm) for norm in norms) and not any(map(is_seen, self.inside))


def _geometry(stages: Sequence[StageSettings], pooling: nn.Module | None) -> Geometry | PooledStage:
    if pooling is not None:
        return PooledStage.of(stages[0], pooling)
    first, depthwise, project = [None, *stages][-3:]
    assert depthwise is not None
    assert project is not None
    return Geometry(first, depthwise, project)


class RestOfForward:
    """Runs the rest of a module's own forward in its place: it sees no more than the forward would."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)


def is_seen(module: nn.Module) -> bool:
    """Tell whether a hook, or a forward put on a module, may get hold of the tensors that it is called with."""
    return is_observed(module) or not isinstance(vars(module).get("forward"), RestOfForward | None)
