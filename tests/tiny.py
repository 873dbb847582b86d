"""What tests of training share: a network, scans and a schedule so small that they take no time."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from pointseg import profiles
from pointseg.losses import consistency_term, extent_term, moved_point_term, point_term, separation_term
from pointseg.network import FCN8VGG16
from pointseg.predict import Model
from pointseg.preprocess import Prepared
from pointseg.profiles import Schedule
from pointseg.runs.weights import read_torch
from pointseg.slices import AXES, Augmentation, SliceDataset
from pointseg.train import History, Watch, fit

QUICK = Schedule(3e-3, (1, 3), (3, 1), round_steps=10, batch=4, patience=9, stop_after=9)
TINY = dataclasses.replace(profiles.CLASSROOM, name="tiny", grid_mm=4.0, width=1 / 8, hidden=32, weak=QUICK,
                           full=dataclasses.replace(QUICK, rounds=(1, 1)))  # table1 trains twelve of these
MODELS = (*AXES, "result", "reference", "result_sagittal", "reference_sagittal")  # of table1, each a row and a file

TERMS = [(1.0, point_term), (1.0, moved_point_term), (1.0, consistency_term), (1.0, separation_term),
         (1.0, extent_term)]


def tiny_scan(seed: int = 0) -> Prepared:
    """Bright squares of class 1 and grey ones of class 2 on noise: 32 x 32 px, 6 slices."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((32, 32, 6), np.uint8)
    mask[4:14, 6:18], mask[18:28, 10:24] = 1, 2
    return Prepared((mask * 90 + rng.integers(0, 40, mask.shape)).astype(np.uint8), mask, (1.0, 1.0, 1.0), "tiny")


def tiny_dataset(seed: int = 0) -> SliceDataset:
    return SliceDataset([tiny_scan(0), tiny_scan(1)], "sagittal", 3, 32, Augmentation(shift_px=1, noise=0.02), seed)


def tiny_network(batch_norm: bool = True, num_classes: int = 3) -> FCN8VGG16:
    torch.manual_seed(0)
    return FCN8VGG16(num_classes, width=1 / 16, batch_norm=batch_norm, finest_pool=2, hidden=16)


def schedule_of(divisors: tuple[float, ...] = (1,), rounds: tuple[int, ...] = (20,), patience: int = 100,
                stop_after: int = 100, learning_rate: float = 0.1, round_steps: int = 1) -> Schedule:
    return Schedule(learning_rate, divisors, rounds, round_steps, 4, patience, stop_after)


def tiny_training(schedule: Schedule, watch: Watch | None = None,
                  network: FCN8VGG16 | None = None) -> tuple[History, dict[str, torch.Tensor]]:
    """A network that learns the squares.   -> its history and weights"""
    network, watch = network or tiny_network(), watch or Watch()
    model = Model(network, "sagittal", 1.0, 32)
    torch.manual_seed(7)
    history = fit(watch.take(model, tiny_scan(2)), watch.steps(tiny_dataset(), schedule.batch, 7),
                  [(1.0, point_term), (0.1, consistency_term)], schedule, lambda: model.score([tiny_scan(2)]),
                  watch=watch)
    return history, network.state_dict()


def weights_in(path: Path) -> list[torch.Tensor]:
    """Of all networks in a model's file; the threshold of three comes last."""
    content = read_torch(path)
    weights = [x for of_one in content.get("models", [content]) for x in of_one["weights"].values()]
    return [*weights, torch.tensor(content.get("threshold", 0.5))]
