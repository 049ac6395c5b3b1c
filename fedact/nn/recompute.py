"""How far back an installed model makes tensors again from, whatever its methods."""

from collections.abc import Iterable

from torch import nn

from fedact.nn.layers import RecomputedSequential, RematerializedCodec


def recompute_of(model: nn.Module) -> int:
    """Return how many convolutions back, at most, what an installed model makes again is computed from; 0 where nothing is.

    An activation's mask is made from its output, one convolution after an input. In a segment of ``checkpoint`` all is
    computed from the segment's input. Installed with this recompute, the same methods make the same again.
    """
    found = [0]
    for module in model.modules():
        for name in ("codec", "source"):
            if isinstance(codec := vars(module).get(name), RematerializedCodec):
                found.append(max(1, _convolutions_in(codec.chain) - (name == "source" and not module.mask_is_deferred)))
        if isinstance(module, RecomputedSequential):
            groups = [nn.Sequential(*group) for group in module.segments()]
            trained = [group for group in groups if any(parameter.requires_grad for parameter in group.parameters())]
            found += [max(1, _convolutions_in(group.modules()) - 1) for group in trained]
    return max(found)


def _convolutions_in(modules: Iterable[nn.Module]) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in modules)
