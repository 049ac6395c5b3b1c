"""Which batches a plan's model is run on: images, or where it can be what its frozen part made of them."""

import logging
from collections.abc import Collection

import numpy as np
import torch
from torch import nn

from fedact.config.plan import Plan
from fedact.config.schema import cache_folder
from fedact.data import Augmented, Loader
from fedact.nn.prefix.outputs import Positions
from fedact.training.experiment import Experiment
from fedact.training.frozen_prefix import FrozenPart, frozen_part
from fedact.training.local import Batches
from fedact.training.prefix_cache import PrefixCache, can_keep, fingerprint, open_cache


def client_batches(
    experiment: Experiment,
    plan: Plan,
    own: Positions,
    held_out: Positions,
    moving: Collection[str],
    random: np.random.Generator,
) -> tuple[Batches, Batches]:
    """Return batches of a client's training and held-out examples, for the experiment's model, which carries the plan.

    The frozen part is run once for all of them, whatever the number of epochs, unless the training images are cropped or
    flipped at random. moving: the tensors that some client trains. random: for crops and flips.
    """
    config = experiment.config
    if config.crop is not None or config.flip:
        loader = Loader(experiment.train.only(own), experiment.preprocessing, config.device)
        augmented = Augmented(loader, config.crop, config.flip, random)
        return augmented, _batches(experiment, plan, "train", held_out, moving)
    all_batches = _batches(experiment, plan, "train", np.concatenate([own, held_out]), moving)
    return all_batches, lambda chosen: all_batches(chosen + len(own))


def test_batches(experiment: Experiment, plan: Plan | None, moving: Collection[str]) -> Batches:
    """Return batches of the server's test examples, for the experiment's model, which carries the plan or none.

    moving: the tensors that some client trains.
    """
    if plan is None:
        return Loader(experiment.test, experiment.preprocessing, experiment.config.device)
    return _batches(experiment, plan, "test", np.arange(len(experiment.test)), moving)


def _batches(experiment: Experiment, plan: Plan, which: str, positions: Positions, moving: Collection[str]) -> Batches:
    examples = experiment.train if which == "train" else experiment.test
    loader = Loader(examples.only(positions), experiment.preprocessing, experiment.config.device)
    part = _part(experiment, plan, loader)
    if part is None:
        return loader
    # What one plan freezes another may train: then it changes from round to round, and nothing of it may be kept.
    cache = None if part.reads(moving) else _cache(experiment, plan, part, which)
    if cache is not None:
        return part.cached(loader, cache, positions)
    return part.held(loader) if which == "train" and part.holds(len(positions)) else part.passing(loader)


def _part(experiment: Experiment, plan: Plan, loader: Loader) -> FrozenPart | None:
    """Return the frozen part under a plan, found once: the process has one model, and tracing it takes long."""
    if plan not in experiment.frozen:
        each = len(experiment.train) / experiment.config.clients
        experiment.frozen[plan] = frozen_part(experiment.model, plan, loader, each)
    return experiment.frozen[plan]


def _cache(experiment: Experiment, plan: Plan, part: FrozenPart, which: str) -> PrefixCache | None:
    if (plan, which) not in experiment.caches:
        wanted = experiment.config.cache_size != "none" and can_keep(part.layouts)
        experiment.caches[plan, which] = _opened(experiment, part, which) if wanted else None
    return experiment.caches[plan, which]


def _opened(experiment: Experiment, part: FrozenPart, which: str) -> PrefixCache | None:
    """Return the cache, None where the disk has no place for it, which is said."""
    examples = experiment.train if which == "train" else experiment.test
    key = fingerprint(_made_by(experiment, part), examples.images)
    size, folder = int(experiment.config.cache_size), cache_folder() / "prefix"
    try:
        return open_cache(folder, key, part.layouts, len(examples), size)
    except OSError as error:
        logging.getLogger(__name__).warning("no prefix cache in %s, only slower: %s", folder, error.strerror)
        return None


def _made_by(experiment: Experiment, part: FrozenPart) -> str:
    """Return what tells a frozen part, with all that its values' last bits follow from, from any other."""
    called = [part.split.model.get_submodule(name) for name in part.modules]
    code = [
        str(part.split.parts.before),
        *(_described(module) for module in called),
        repr(experiment.preprocessing),
        str(part.group),
    ]
    machine = [
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
        experiment.config.device,
    ]
    return fingerprint(*code, *machine, *part.tensors.values())


def _described(module: nn.Module) -> str:
    return f"{module!r} {[type(each).__name__ for each in module.modules()]}"
