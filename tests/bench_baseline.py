"""A strong baseline: MONAI's 3-D U-Net on whole scans, from full masks and from the same points, in the same folds.

    pip install -e .[baseline]
    python tests/bench_baseline.py [--data ../shared/data --source myosegmentum] [--lines ..] [--folds 0 1 2 3 4 5]
                                   [--repeats 0] [--processes 2] [--minutes N] [--out out/baseline] [--csv FILE]
                                   [--report]

Masks: cross-entropy and Dice; points: cross-entropy at the points alone, which move one by one with the augmentation,
with the classes' weights that the weak models have.  Both choose their best round by validation labels of their own
kind.  Rows are as those of bench_minutes.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from folds import Run, confusions, measure, options, read_arrays, scans_of
from torch import Tensor, nn

from pointseg.estimate import class_weights, estimated_confusion
from pointseg.losses import point_loss
from pointseg.metrics import weighted_dice
from pointseg.network import autocast, device
from pointseg.points import Points, draw_labels
from pointseg.preprocess import Prepared
from pointseg.profiles import CLASSROOM
from pointseg.report.compare import Row, by_patient, in_text, interval, resampled, time_of
from pointseg.slices import GREY_LEVELS
from pointseg.volume import CLASSES, UNLABELLED

LABELS = {"3-D U-Net: masks": "masks", "3-D U-Net: points": "points"}
ROUNDS, ROUND_STEPS, BATCH, LEARNING_RATE = 8, 100, 2, 1e-3  # the rate falls as a cosine
CHANNELS = (16, 32, 64, 128)
MULTIPLE = 2 ** (len(CHANNELS) - 1)  # of which sizes must be


def network(seed: int) -> nn.Module:
    """1.2 M parameters."""
    from monai.networks.nets import UNet  # an extra: nothing else needs it

    torch.manual_seed(seed)
    return UNet(3, 1, len(CLASSES), CHANNELS, (2,) * (len(CHANNELS) - 1), num_res_units=2, norm="batch").to(device())


@dataclass
class Scans3D:
    """Whole scans with their labels, each item moved and changed at random as slices are: `CLASSROOM.augmentation`."""

    labelled: list[Prepared]
    size: tuple[int, int, int]
    rng: np.random.Generator

    def batch(self) -> tuple[Tensor, Tensor]:
        """images (B, 1, z, y, x) about 0..1, labels (B, z, y, x) uint8"""
        items = [self.item(self.labelled[i]) for i in self.rng.integers(len(self.labelled), size=BATCH)]
        return tuple(torch.stack(x) for x in zip(*items, strict=True))

    def item(self, scan: Prepared) -> tuple[Tensor, Tensor]:
        a, rng = CLASSROOM.augmentation, self.rng
        angles = np.deg2rad(a.rotation_deg) * rng.standard_normal(3) * (0.3, 0.3, 1)  # mostly in the sagittal plane
        scale = np.exp(a.log_scale * rng.standard_normal() + a.log_stretch * rng.standard_normal(3))
        matrix = rotation(angles) * scale
        shift = a.shift_px * rng.standard_normal(3) * (1, 1, 0.3)
        middle = (np.array(scan.shape) - 1) / 2
        offset = middle + shift - matrix @ ((np.array(self.size) - 1) / 2)  # scan's voxel = matrix @ output's + offset
        image = torch.from_numpy(moved(scan.image, matrix, offset, self.size, "bilinear", 0))
        gamma, gain = np.exp(a.log_gamma * rng.standard_normal()), 1 + a.contrast * rng.standard_normal()
        table = GREY_LEVELS**gamma * gain + a.contrast / 2 * rng.standard_normal()
        table[0] = 0
        image = torch.from_numpy(np.interp(image.numpy(), np.arange(256), table).astype(np.float32))
        image += a.noise * rng.random() * torch.from_numpy(rng.standard_normal(self.size, np.float32))
        if isinstance(scan, Points):
            labels = np.full(self.size, UNLABELLED, np.uint8)
            places = np.rint((scan.places - offset) @ np.linalg.inv(matrix).T).astype(int)
            inside = ((places >= 0) & (places < self.size)).all(1)
            labels[tuple(places[inside].T)] = scan.values[inside]
        else:
            labels = moved(scan.mask, matrix, offset, self.size, "nearest", UNLABELLED).astype(np.uint8)
        return image[None], torch.from_numpy(labels)


def rotation(angles: np.ndarray) -> np.ndarray:
    """About z, y and x in turn.   (3,) radians -> (3, 3)"""
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (a for a in range(3) if a != axis)
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = out @ turn
    return out


def moved(volume: np.ndarray, matrix: np.ndarray, offset: np.ndarray, size: tuple[int, int, int], mode: str,
          beyond: int) -> np.ndarray:
    """volume at matrix @ voxel + offset for each voxel of the output; `beyond` outside it.   -> (*size) float32"""
    shape = np.array(volume.shape)
    per_voxel = 2 / (shape - 1)  # grid_sample's coordinates run from -1 to 1, x first
    theta = np.zeros((3, 4))
    half = (np.array(size) - 1) / 2
    theta[:, :3] = per_voxel[:, None] * matrix * half
    theta[:, 3] = per_voxel * (offset + matrix @ half) - 1
    theta = theta[::-1][:, [2, 1, 0, 3]].copy()
    grid = F.affine_grid(torch.from_numpy(theta[None]).float(), [1, 1, *size], align_corners=True)
    values = torch.from_numpy(volume.astype(np.float32) - beyond)[None, None]
    return F.grid_sample(values, grid, mode, "zeros", align_corners=True)[0, 0].numpy() + beyond


def probabilities(net: nn.Module, scan: Prepared) -> np.ndarray:
    """(K, z, y, x) float32"""
    size = padded(scan.shape)
    x = torch.zeros(1, 1, *size, device=device())
    box = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(size, scan.shape, strict=True))
    x[0, 0][box] = torch.from_numpy(scan.image / np.float32(255)).to(x.device)
    net.eval()
    with torch.inference_mode(), autocast(x.device):
        logits = net(x).float()[0][:, *box]
    return logits.softmax(0).cpu().numpy()


def padded(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple(MULTIPLE * -(-n // MULTIPLE) for n in shape)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - the mean over classes of the soft Dice; what is unlabelled counts for nothing."""
    known = (labels != UNLABELLED)[:, None]
    truth = F.one_hot(labels.long().where(known[:, 0], 0), logits.shape[1]).movedim(-1, 1) * known
    p = logits.softmax(1) * known
    axes = (0, 2, 3, 4)
    return 1 - ((2 * (p * truth).sum(axes) + 1) / ((p + truth).sum(axes) + 1)).mean()


def train(labelled, seed: int, rounds: int = ROUNDS, round_steps: int = ROUND_STEPS) -> nn.Module:
    """With the weights of the round of the best Dice_wi by the validation labels."""
    of_points = isinstance(labelled.train[0], Points)
    net, rng = network(seed), np.random.default_rng(seed)
    size = padded(tuple(max(scan.shape[i] for scan in labelled.train) for i in range(3)))
    scans, steps = Scans3D(labelled.train, size, rng), rounds * round_steps
    weights = (class_weights(labelled.train, len(CLASSES), CLASSROOM.point_weighting).to(device()) if of_points
               else None)
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, best_weights = -1.0, None
    for step in range(1, steps + 1):
        net.train()
        image, labels = (x.to(device()) for x in scans.batch())
        with autocast(image.device):
            logits = net(image).float()
        loss = point_loss(logits, labels, weights) + (0 if of_points else dice_loss(logits, labels))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % round_steps == 0:
            confusion = sum(estimated_confusion(scan, probabilities(net, scan).argmax(0).astype(np.uint8), len(CLASSES))
                            for scan in labelled.validation)
            if (score := weighted_dice(confusion)) > best:
                best, best_weights = score, copy.deepcopy(net.state_dict())
    net.load_state_dict(best_weights)
    return net


def do(arrays: Path, run: Run) -> list[Row]:
    data = read_arrays(arrays)
    scans = scans_of(data, run.fold)
    labelled = draw_labels(scans, LABELS[run.line], run.seed)
    net, time, rows = train(labelled, run.seed), time_of(labelled, scans), []
    for scan in scans.test:
        about = (run.line, run.repeat, run.fold, "test", scan.name, data.patients[scan.name])
        rows += [Row(*about, answer, *time, in_text(matrix))
                 for answer, matrix in confusions(probabilities(net, scan), scan, data.own[scan.name]).items()]
    return rows


def report(rows: list[Row]) -> None:
    for line, answer in dict.fromkeys((row.line, row.answer) for row in rows):
        of_line = [row for row in rows if (row.line, row.answer) == (line, answer)]
        runs = len({(row.fold, row.repeat) for row in of_line})
        print(f"{line:<22}{answer:<18}{of_line[0].share():>7.1%}{runs:>4} runs  "
              + "{:.3f} [{:.3f}, {:.3f}]".format(*interval(resampled(by_patient(of_line, part="test")))))


def main() -> None:
    o = options(f"{__doc__}\nlines: {', '.join(LABELS)}", "out/baseline").parse_args()
    report(measure(LABELS, do, lambda run, step: 9 * step * ROUNDS * ROUND_STEPS, o))  # about nine steps of slices each


if __name__ == "__main__":
    main()
