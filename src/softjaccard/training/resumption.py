"""Resumption: a run that was cut off goes on as if it had not been."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from softjaccard.data.transforms import mix_seed

MAX_SEED = 2**32 - 1
"""The largest seed that every generator takes."""


class Resumption(Callback):
    """Keeps the global random generators in checkpoints, and puts them and Lightning's counters back.

    A new run begins with generators seeded by (seed, device). In a resumed run, building the network and starting the
    loaders have drawn and counted; all that is overwritten when training has come to the hook in which the checkpoint
    was made: before the next epoch's start, or before a batch. With another number of devices the new ones begin with
    seeds of their own.

    So what is drawn from global generators in and behind `on_train_epoch_start` and `on_train_batch_start` is as in an
    uninterrupted run; what is drawn where a batch is moved to the device is not. A module keeps other states that
    last from step to step, such as those of its own generators, by Lightning's `on_save_checkpoint` and
    `on_load_checkpoint`, as tensors and plain data.
    """

    def __init__(self, seed: int) -> None:
        """See the class."""
        self._seed = seed
        self._generators: list[dict[str, Any]] | None = None
        self._counters: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the generators of all devices."""
        checkpoint["generators"] = _of_all_devices(trainer, generator_states())

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what is to be put back."""
        self._generators, self._counters = checkpoint["generators"], checkpoint["loops"]["fit_loop"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed the generators, and begin the epoch after the one at whose end the checkpoint was made."""
        mixed = mix_seed(self._seed, trainer.global_rank)
        seed_everything(mixed % MAX_SEED, workers=True, verbose=False)
        if self._counters is not None and not _within_epoch(self._counters):
            # Lightning would repeat the epoch's end where there is a limit of steps, and would not start the loader
            # anew for the epoch.
            self._put_counters_back(trainer)
            trainer.fit_loop.epoch_progress.increment_completed()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the generators back, after a checkpoint of an epoch's end."""
        self._put_generators_back(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put all back, after a checkpoint within an epoch."""
        self._put_counters_back(trainer)
        self._put_generators_back(trainer)

    def _put_counters_back(self, trainer: Trainer) -> None:
        if self._counters is None:
            return
        fit = trainer.fit_loop
        fit.load_state_dict(self._counters)
        # Loading has marked the loops as to be restarted, which they are not any more.
        steps = fit.epoch_loop
        for loop in (fit, steps, steps.automatic_optimization, steps.manual_optimization, steps.val_loop):
            loop.on_iteration_done()
        self._counters = None

    def _put_generators_back(self, trainer: Trainer) -> None:
        if self._generators is not None and trainer.global_rank < len(self._generators):
            set_generator_states(self._generators[trainer.global_rank])
        self._generators = None


@contextmanager
def before_next_batch(trainer: Trainer) -> Iterator[None]:
    """Let Lightning's counters be as before the epoch's next batch, for a checkpoint of a training that stops there.

    When it stops at a limit of steps or of time, Lightning ends the epoch as if it had had all its batches.
    """
    loop: Any = trainer.fit_loop
    epochs, batches = loop.epoch_progress, loop.epoch_loop.batch_progress
    kept = epochs.state_dict(), batches.state_dict()
    for counters in (epochs.total, epochs.current):
        counters.processed -= 1
    batches.increment_ready()
    batches.is_last_batch = batches.current.ready == trainer.num_training_batches
    yield
    epochs.load_state_dict(kept[0])
    batches.load_state_dict(kept[1])


def generator_states() -> dict[str, Any]:
    """Return the states of the global random generators as tensors and plain data.

    Example:
        >>> states = generator_states()
        >>> drawn = torch.rand(1), np.random.rand(), random.random()
        >>> set_generator_states(states)
        >>> drawn == (torch.rand(1), np.random.rand(), random.random())
        True
    """
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        # Torch cannot send its uint32 between processes.
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if _cuda_in_use() else [],
    }


def set_generator_states(states: dict[str, Any]) -> None:
    """Put the global random generators into states that `generator_states` gave.

    States of GPUs that are not there, or not in use, are left out.
    """
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if _cuda_in_use():
        for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
            torch.cuda.set_rng_state(state, device)


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _within_epoch(counters: dict[str, Any]) -> bool:
    epochs = counters["epoch_progress"]["current"]
    return bool(epochs["started"] > epochs["processed"])


def _of_all_devices(trainer: Trainer, states: dict[str, Any]) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [states]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, states)
    return gathered
