"""Which batches a plan's model is run on: images, or where it can be what its frozen part made of them."""

import torch
from torch import nn

from fedact.config import cache_folder
from fedact.crossing import Positions
from fedact.data import Examples, Loader
from fedact.experiment import Experiment
from fedact.frozen import FrozenPart, frozen_part
from fedact.plans import Plan
from fedact.prefix_cache import PrefixCache, fingerprint, open_cache
from fedact.sizes import parse_bytes
from fedact.training import Batches


def training_batches(experiment: Experiment, plan: Plan, positions: Positions) -> Batches:
    """Return batches of some of the clients' examples, for a model that carries the plan and sees them several times."""
    return _batches(experiment, plan, "train", positions, again=True)


def passing_batches(experiment: Experiment, plan: Plan, which: str, positions: Positions) -> Batches:
    """Return batches of "train" or "test" examples that are seen once."""
    return _batches(experiment, plan, which, positions, again=False)


def _batches(experiment: Experiment, plan: Plan, which: str, positions: Positions, again: bool) -> Batches:
    examples: Examples = getattr(experiment, which)
    loader = Loader(examples.take(positions), experiment.preprocessing, experiment.config.device)
    part = _part(experiment, plan, loader)
    if part is None:
        return loader
    cache = _cache(experiment, plan, part, which, examples)
    if cache is not None:
        return part.cached(loader, cache, positions)
    return part.held(loader) if again else part.passing(loader)


def _part(experiment: Experiment, plan: Plan, loader: Loader) -> FrozenPart | None:
    """Return the frozen part under a plan, found once: the process has one model, and tracing it takes long."""
    if plan not in experiment.frozen:
        experiment.frozen[plan] = frozen_part(experiment.model, plan, loader)
    return experiment.frozen[plan]


def _cache(experiment: Experiment, plan: Plan, part: FrozenPart, which: str, examples: Examples) -> PrefixCache | None:
    if experiment.config.cache_size == "none":
        return None
    if (plan, which) not in experiment.caches:
        key = fingerprint(_made_by(experiment, part), examples.images)
        size = parse_bytes(experiment.config.cache_size)
        experiment.caches[plan, which] = open_cache(cache_folder() / "prefix", key, part.layouts, len(examples), size)
    return experiment.caches[plan, which]


def _made_by(experiment: Experiment, part: FrozenPart) -> str:
    """Return what tells a frozen part, with all that its values' last bits follow from, from any other."""
    model, graph = part.split.model, part.split.parts.before
    called = [model.get_submodule(str(node.target)) for node in graph.find_nodes(op="call_module")]
    tensors = [tensor for module in called for tensor in (*module.parameters(), *module.buffers())]
    code = [str(graph), *(_described(module) for module in called), repr(experiment.preprocessing)]
    machine = [
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
        experiment.config.device,
    ]
    return fingerprint(*code, *machine, *tensors)


def _described(module: nn.Module) -> str:
    return f"{module!r} {[type(each).__name__ for each in module.modules()]}"
