"""The profiles: same code, other numbers.   Thesis section 4.2."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pointseg.network import FCN8VGG16, FULLY_CONNECTED
from pointseg.runs.parallel import rank
from pointseg.runs.weights import load_imagenet
from pointseg.slices import Augmentation
from pointseg.train import Schedule

EXTENT_RADIUS_MM = 110.0


@dataclass(frozen=True)
class Profile:
    """Everything that differs between a laptop and a GPU."""

    name: str
    grid_mm: float
    input_px: int  # largest network input, a multiple of 32; a smaller scan gets a smaller input
    width: float
    batch_norm: bool
    finest_pool: int
    hidden: int
    imagenet: bool  # start from ImageNet weights: from imagenet_file, or where that is None from torch.hub
    point_weighting: float  # 0: every point counts the same (thesis); 1: as many as the pixels it stands for
    terms: str  # of the weak models: P point, C consistency, E extent, S separation
    term_weights: dict[str, float]
    weak: Schedule
    full: Schedule  # the final model and the reference
    augmentation: Augmentation
    imagenet_file: Path | None = None

    def network(self, num_classes: int, seed: int) -> FCN8VGG16:
        """A fresh network; its first weights depend on the seed alone, and on ImageNet's where the profile says so."""
        torch.manual_seed(seed)
        # Of several processes the first reads ImageNet's weights: the others get theirs from it when training begins.
        network = FCN8VGG16(num_classes, self.width, self.batch_norm, self.finest_pool, self.hidden)
        missing = load_imagenet(network, self.imagenet_file) if self.imagenet and rank() == 0 else []
        if missing:
            print(f"not among the ImageNet weights, so started at random: {', '.join(missing)}")
        return network


AUGMENTATION = Augmentation(rotation_deg=6, log_scale=0.08, log_stretch=0.04, shift_px=5, log_gamma=0.25, contrast=0.1,
                            noise=0.05)

CLASSROOM = Profile(
    name="classroom", grid_mm=2.0, input_px=192, width=0.25, batch_norm=True, finest_pool=2, hidden=256, imagenet=False,
    point_weighting=0.65, terms="P",  # the other terms take twice the time and did not help in it: see the README
    term_weights={"P": 1.0, "C": 0.3, "E": 1.0, "S": 0.1},  # S reaches -9 for 6 classes, ten times any other term
    weak=Schedule(1e-3, (1, 3, 3, 3), (4, 2, 1, 1), round_steps=100, batch=8, patience=10, stop_after=100),
    full=Schedule(1e-3, (1, 3, 3), (4, 2, 1), round_steps=200, batch=8, patience=10, stop_after=100),
    augmentation=AUGMENTATION)

LESSON = replace(  # the notebooks' own: every cell runs in seconds, every model in half a minute
    CLASSROOM, name="lesson", grid_mm=3.0, finest_pool=1,  # pool 1's spacing of 6 mm is as near to 8 mm as 3 mm allow
    weak=replace(CLASSROOM.weak, divisors=(1, 3, 3), rounds=(3, 1, 1)),
    full=replace(CLASSROOM.full, rounds=(3, 2, 1), round_steps=100),
    augmentation=replace(AUGMENTATION, shift_px=3))

THESIS_SCHEDULE = Schedule(1e-4, (1, 10, 10, 50), (1000, 1000, 1000, 1000), round_steps=250, batch=6, patience=10,
                           stop_after=10)
THESIS = Profile(
    name="thesis", grid_mm=1.0, input_px=352, width=1.0, batch_norm=False, finest_pool=3, hidden=FULLY_CONNECTED,
    imagenet=True, point_weighting=0.0, terms="PCES", term_weights={"P": 1.0, "C": 1.0, "E": 1.0, "S": 1.0},
    weak=THESIS_SCHEDULE, full=THESIS_SCHEDULE, augmentation=AUGMENTATION)

PROFILES = {p.name: p for p in (CLASSROOM, LESSON, THESIS)}
