"""The batches that a plan's model runs on: frozen-prefix outputs where the model can be split, else images."""

import logging
from collections.abc import Collection

import numpy as np
import torch

from fedact.config.paths import cache_folder
from fedact.config.plan import Plan
from fedact.data import Augmented, Examples, Loader
from fedact.nn.adaptation import plain_name
from fedact.nn.prefix.outputs import Positions
from fedact.storage.machine import arithmetic
from fedact.training.experiment import Experiment
from fedact.training.frozen_prefix import FrozenPrefix, frozen_prefix
from fedact.training.local import Batches
from fedact.training.prefix_cache import PrefixCache, fingerprint, is_storable, open_cache
from fedact.training.workspace import Workspace


def client_batches(
    workspace: Workspace,
    plan: Plan,
    training: Positions,
    held_out: Positions,
    moving: Collection[str],
    random: np.random.Generator,
) -> tuple[Batches, Batches]:
    """Return batches of a client's training and of its held-out examples, for the workspace's model under the plan.

    training, held_out: positions of the examples. moving: names of the tensors that any client trains. random: for crops
    and flips. The frozen prefix runs once for all epochs, except for images that are cropped or flipped at random.
    """
    config = workspace.experiment.config
    if config.crop is not None or config.flip:
        augmented = Augmented(_loader(workspace.experiment, "train", training), config.crop, config.flip, random)
        if not len(held_out):
            return augmented, augmented
        return augmented, _batches(workspace, plan, "train", held_out, moving)
    all_batches = _batches(workspace, plan, "train", np.concatenate([training, held_out]), moving)
    return all_batches, lambda chosen: all_batches(chosen + len(training))


def test_batches(
    workspace: Workspace, plan: Plan | None, moving: Collection[str], positions: Positions, which: str
) -> Batches:
    """Return batches of some examples to be tested on, for the workspace's model under the plan, None for a plain one.

    moving: names of the tensors that any client trains. positions: of the examples. which: their name.
    """
    if plan is None:
        return _loader(workspace.experiment, which, positions)
    return _batches(workspace, plan, which, positions, moving)


def _loader(experiment: Experiment, which: str, positions: Positions) -> Loader:
    return Loader(_examples(experiment, which).subset(positions), experiment.preprocessing, experiment.config.device)


def _examples(experiment: Experiment, which: str) -> Examples:
    return experiment.examples[which]


def _batches(workspace: Workspace, plan: Plan, which: str, positions: Positions, moving: Collection[str]) -> Batches:
    """Return batches of these examples for the model under the plan: cached, in memory, on demand, or of images."""
    experiment, loader = workspace.experiment, _loader(workspace.experiment, which, positions)
    if plan not in workspace.frozen:
        # Cached, for tracing a model takes long.
        share = len(experiment.train) / experiment.config.fleet_size
        workspace.frozen[plan] = frozen_prefix(workspace.model, plan, loader, share)
    part = workspace.frozen[plan]
    if part is None:
        return loader
    # A prefix that another plan trains changes from round to round, so its outputs are not cached.
    steady = not part.reads({*moving, *map(plain_name, moving)})
    if steady:
        if (plan, which) not in workspace.caches:
            workspace.caches[plan, which] = _cache(experiment, part, which)
        cache = workspace.caches[plan, which]
        if cache is not None:
            return part.from_cache(loader, cache, positions)
    if which == "train" and part.fits_in_memory(len(positions)):
        return part.from_memory(loader, steady)
    return part.on_demand(loader, steady)


def _cache(experiment: Experiment, part: FrozenPrefix, which: str) -> PrefixCache | None:
    """Return the disk cache of a prefix's outputs; None where it is switched off or, with a warning, has no room on disk."""
    if experiment.config.cache_size == "none" or not is_storable(part.layouts):
        return None
    examples = _examples(experiment, which)
    key = fingerprint(_prefix_key(experiment, part), experiment.image_digests[which])
    size, folder = int(experiment.config.cache_size), cache_folder() / "prefix"
    try:
        return open_cache(folder, key, part.layouts, len(examples), size)
    except OSError as error:
        logging.getLogger(__name__).warning("no prefix cache in %s, only slower: %s", folder, error.strerror)
        return None


def _prefix_key(experiment: Experiment, part: FrozenPrefix) -> str:
    """Return a digest of everything but the images that the bits of a prefix's outputs depend on."""
    called = [part.split.model.get_submodule(name) for name in part.modules]
    code = [
        str(part.split.parts.before),
        *(f"{module!r} {[type(layer).__name__ for layer in module.modules()]}" for module in called),
        repr(experiment.preprocessing),
        str(part.group),
        "norms folded, channels last, packed",
        # What a module of the user's own computes stands in no graph.
        *([str(experiment.config.code)] if experiment.config.code else []),
    ]
    machine = [arithmetic(), str(torch.get_num_threads()), experiment.config.device]
    return fingerprint(*code, *machine, *part.tensors.values())
