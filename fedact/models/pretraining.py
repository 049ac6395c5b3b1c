"""The server's pretraining on its half of the data, with the resulting weights cached on disk."""

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedact.config.errors import ConfigError
from fedact.data import Examples, Loader, Preprocessing, augmented, in_blocks
from fedact.data.augmentation import Batches
from fedact.models.tasks import task_loss
from fedact.processes.threads import one_thread
from fedact.storage import checkpoints
from fedact.storage.disk import sweep
from fedact.storage.locks import locked
from fedact.storage.machine import arithmetic


@dataclass(frozen=True)
class PretrainingRecipe:
    """SGD with momentum under a one-cycle learning rate.

    crop, flip: random crops of this many pixels a side, random mirror images. only: names of the modules to train, empty
    for all.
    """

    epochs: int = 12
    batch_size: int = 32
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: int | None = None
    flip: bool = False
    only: tuple[str, ...] = ()


log = logging.getLogger(__name__)

MOST_INPUT_BYTES, AT_ONCE = 2**28, 256
"""Inputs that take no more are made once for all epochs, so many at a time."""
AN_HOUR = 3600
"""Seconds after which a temporary file in the cache is abandoned: no write takes as long."""


def pretrained(
    model: nn.Module,
    name: str,
    examples: Examples,
    preprocessing: Preprocessing,
    generator: np.random.Generator,
    folder: Path,
    recipe: PretrainingRecipe = PretrainingRecipe(),
) -> dict[str, Tensor]:
    """Return the model's weights after pretraining on the examples, from the cache where they are in it.

    The same bits on a machine whatever the process's number of threads, so that a run does not depend on who filled the
    cache. One process fits them, and those that want the same meanwhile wait for it. The model itself is trained only
    without a cached result. name: part of the cache's key, beside examples, preprocessing, recipe, initial weights,
    libraries and processor. folder: the cache.
    """
    file = folder / f"{_fingerprint(model, name, examples, preprocessing, recipe)}.safetensors"
    if (weights := _cached(file, model)) is not None:
        return weights
    try:
        checkpoints.make_folder(folder, private=True)
        sweep(folder, older_than=time.time() - AN_HOUR)
    except ConfigError as error:
        raise ConfigError(f"{error}; $FEDACT_CACHE names another place for what is kept between runs") from None
    what = f"fitting {', '.join(recipe.only)}" if recipe.only else "pretraining"
    missing = not file.exists()
    with locked(folder, f"waiting for another process: it is {what} on the same examples", f".{file.stem}.lock"):
        if missing and (weights := _cached(file, model)) is not None:
            return weights
        log.info(f"{what} on {len(examples):,} examples for {recipe.epochs} epochs, once; it will be kept as {file}")
        with one_thread():
            _train(model, Loader(examples, preprocessing), generator, recipe)
        weights = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
        checkpoints.save(file, weights, private=True)
    return weights


def _cached(file: Path, model: nn.Module) -> dict[str, Tensor] | None:
    """Return the weights in a cache file, None where there is none or it is broken."""
    if not file.exists():
        return None
    try:
        weights = checkpoints.load_like(file, model.state_dict())
    except ConfigError as error:
        log.info(f"pretraining anew: {error}")
        return None
    log.info(f"pretrained weights: {file}")
    return weights


def _train(model: nn.Module, loader: Loader, generator: np.random.Generator, recipe: PretrainingRecipe) -> None:
    """Train the model in place, and leave it in eval mode with all parameters trainable."""
    steps = -(-len(loader) // recipe.batch_size)
    trained = [p for name in recipe.only for p in model.get_submodule(name).parameters()] or list(model.parameters())
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(
        trained, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.momentum > 0
    )
    batches = augmented(inputs_once(loader), recipe.crop, recipe.flip, generator)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.epochs * steps)
    # A frozen norm's statistics stay as they are.
    model.train(not recipe.only)
    for name in recipe.only:
        model.get_submodule(name).train()
    for _ in range(recipe.epochs):
        # Nearly equal batches: batch norm cannot train on a last batch of one example.
        for positions in np.array_split(generator.permutation(len(loader)), steps):
            x, y = batches(positions)
            optimizer.zero_grad()
            task_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval().requires_grad_(True)


def inputs_once(loader: Loader) -> Batches:
    """Return the loader's batches, from inputs that are made once for all epochs; the loader where they take too much."""
    positions = np.arange(len(loader))
    first, _ = loader(positions[:1])
    if first.nbytes * len(loader) > MOST_INPUT_BYTES:
        return loader
    inputs = torch.cat([loader(part)[0] for part in np.array_split(positions, -(-len(loader) // AT_ONCE))])
    return lambda chosen: (inputs[torch.from_numpy(chosen)], loader.targets(chosen))


def nondefault_settings(settings: Preprocessing | PretrainingRecipe) -> dict[str, Any]:
    """Return the settings for a cache key, without unset options: one added later leaves old keys as they are."""
    return {name: value for name, value in asdict(settings).items() if value or type(value) in (int, float)}


def _fingerprint(
    model: nn.Module, name: str, examples: Examples, preprocessing: Preprocessing, recipe: PretrainingRecipe
) -> str:
    """Return the cache key: a digest of everything that the pretrained weights depend on."""
    digest = hashlib.sha256(
        json.dumps([name, nondefault_settings(preprocessing), nondefault_settings(recipe), arithmetic()]).encode()
    )
    if examples.images.dtype != np.uint8:
        digest.update(f"{examples.images.dtype} {examples.images.shape[1:]}".encode())
    for block in in_blocks(examples.images):
        digest.update(block.tobytes())
    for targets in (examples.labels, *([] if examples.masks is None else in_blocks(examples.masks))):
        digest.update(targets.tobytes())
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:24]
