"""torchvision, loaded without torch's compiler: every process starts a second earlier."""

from fedact.torch_private import compiler_on_demand

with compiler_on_demand():
    from torchvision import datasets, models, ops

__all__ = ["datasets", "models", "ops"]
