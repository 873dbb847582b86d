"""The network against the published way: a forward pass, a training step, a whole scan; and the loader's share.

    python tests/bench_network.py [--only WORD ...] [--slices 24]

The published way is FCN8 with 100 px of padding in float32 and contiguous memory, loss terms by loops over classes and
pairs, masks by NumPy, crops reassembled with NaN, CLAHE by scikit-image.  About 8 minutes on two CPU cores.
"""

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from bench_kernels import distances_by_broadcasting, labels_by_nanmean, prepare_by_scikit_image
from timing import Other, Report
from torch import Tensor, nn

from pointseg.datasets.phantom import make_phantom
from pointseg.kernels import extent_masks
from pointseg.losses import Move
from pointseg.network import FCN8VGG16, VGG16_BLOCKS, device, for_inference
from pointseg.points import draw_points
from pointseg.predict import Model
from pointseg.preprocess import Prepared, prepare, resample_linear, resample_nearest
from pointseg.procedure import terms_named
from pointseg.profiles import CLASSROOM, THESIS, Profile
from pointseg.slices import SliceDataset, cut_crops
from pointseg.train import training_step
from pointseg.volume import UNLABELLED, Geometry, Volume

PX = THESIS.input_px


class PublishedFCN8(nn.Module):
    """FCN8 on VGG16 in its first layout: 100 px of padding, then valid convolutions, learned upsampling, crops."""

    def __init__(self, num_classes: int):
        super().__init__()
        layers, channels = [], 3
        for block in VGG16_BLOCKS:
            for out in block:
                layers += [nn.Conv2d(channels, out, 3, padding=100 if channels == 3 else 1), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Conv2d(channels, 4096, 7), nn.ReLU(inplace=True), nn.Dropout2d(),
                                        nn.Conv2d(4096, 4096, 1), nn.ReLU(inplace=True), nn.Dropout2d(),
                                        nn.Conv2d(4096, num_classes, 1))
        self.score3, self.score4 = nn.Conv2d(256, num_classes, 1), nn.Conv2d(512, num_classes, 1)
        self.up2, self.up4, self.up8 = (nn.ConvTranspose2d(num_classes, num_classes, size, stride, bias=False)
                                        for size, stride in ((4, 2), (4, 2), (16, 8)))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        pools = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pools.append(x)
        scores = self.up2(self.classifier(x))
        for up, score, pool, at in ((self.up4, self.score4, pools[3], 5), (self.up8, self.score3, pools[2], 9)):
            scores = up(scores + score(pool)[:, :, at : at + scores.shape[2], at : at + scores.shape[3]])
        return scores[:, :, 31 : 31 + height, 31 : 31 + width].contiguous()


def published_step(network: nn.Module, image: Tensor, labels: Tensor, points: list[list[np.ndarray]], move: Move,
                   optimizer: torch.optim.Optimizer) -> None:
    """Four terms, each with loops over slices, classes or pairs; the extent's masks from distances to all points."""
    logits, moved = network(image), network(move(image))
    total = F.cross_entropy(logits, labels.long(), ignore_index=UNLABELLED)
    total = total + F.cross_entropy(moved, move(labels).long(), ignore_index=UNLABELLED)
    total = total + (move(logits) - moved).abs().mean()
    probabilities, num_classes = torch.sigmoid(logits), logits.shape[1]
    for m in range(num_classes):
        for n in range(m + 1, num_classes):
            total = total - (probabilities[:, m] - probabilities[:, n]).abs().mean()
    extent = 0.0
    for b, of_slice in enumerate(points):
        for k in range(1, num_classes):
            far = distances_by_broadcasting(of_slice[k], image.shape[-2:]) >= CLASSROOM.extent_radius_mm
            weight = torch.from_numpy(far.astype(np.float32))
            extent = extent + (weight * -torch.log(1 - probabilities[b, k].clamp(max=1 - 1e-6))).mean()
    total = total + extent / (len(points) * (num_classes - 1))
    optimizer.zero_grad()
    total.backward()
    optimizer.step()


def forward(report: Report) -> None:
    torch.manual_seed(0)
    published, ours = PublishedFCN8(6).eval(), for_inference(FCN8VGG16(6))
    for count, rounds in ((1, 5), (8, 3)):
        x = torch.rand(count, 3, PX, PX)

        def by_published(x=x):
            with torch.inference_mode():
                published(x)

        report.row(f"forward, full width, {count} x {PX} x {PX}", lambda x=x: ours(x),
                   [Other("published layout, float32", by_published, 6)], rounds=rounds)


def step(report: Report) -> None:
    """Batch 2, the consistency's second pass included."""
    rng = np.random.default_rng(0)
    image, move = torch.rand(2, 3, PX, PX), Move(True, 1)
    labels = np.full((2, PX, PX), UNLABELLED, np.uint8)
    points = [[rng.integers(100, 250, (3, 2)) for _ in range(6)] for _ in range(2)]
    for b, of_slice in enumerate(points):
        for k, p in enumerate(of_slice):
            labels[b, p[:, 0], p[:, 1]] = k
    labels, classes, where = torch.from_numpy(labels), np.repeat(np.arange(6), 3), device()
    torch.manual_seed(0)
    published, ours = PublishedFCN8(6), FCN8VGG16(6).to(where, memory_format=torch.channels_last)
    by_published, by_ours = torch.optim.Adam(published.parameters(), 1e-4), torch.optim.Adam(ours.parameters(), 1e-4,
                                                                                             fused=True)

    def our_step():
        extent = np.stack([extent_masks(np.concatenate(p), classes, 6, (PX, PX), (1, 1), CLASSROOM.extent_radius_mm)
                           for p in points])
        batch = tuple(x.to(where) for x in (image, labels, torch.from_numpy(extent)))
        training_step(ours, batch, move, terms_named("PCES", THESIS), by_ours)["total"].item()

    report.row("training step, four terms, full width, batch 2", our_step,
               [Other("published layout, loops, float32",
                      lambda: published_step(published, image, labels, points, move, by_published), 3)], rounds=2)


def scan_of(slices: int) -> Volume:
    """A synthetic scan of 300 x 220 mm and so many sagittal slices of 1 mm."""
    phantom = make_phantom(0)
    shape = (300, 220, slices)
    return Volume(resample_linear(phantom.image, shape), resample_nearest(phantom.mask, shape), (1.0,) * 3, "scan",
                  "MR", Geometry.canonical(shape, (1.0,) * 3))


def full_width_model() -> Model:
    torch.manual_seed(0)
    return Model(FCN8VGG16(6).to(device(), memory_format=torch.channels_last).eval(), "sagittal", THESIS.grid_mm, PX)


def segment_by_published(network: nn.Module, volume: Volume) -> np.ndarray:
    """Slice by slice: prepared by scikit-image, one padded crop through the network, reassembled with NaN."""
    image = prepare_by_scikit_image(volume, THESIS.grid_mm)
    scan, shape = Prepared(image, None, (1.0,) * 3, "scan"), image.shape[:2]
    corner, labels = (-((PX - shape[0]) // 2), -((PX - shape[1]) // 2)), np.empty(image.shape, np.uint8)
    for x in range(image.shape[2]):
        with torch.inference_mode():
            logits = network(torch.from_numpy(cut_crops(scan, 2, x, [corner], (PX, PX)))).numpy()
        inside = logits[:, :, -corner[0] : shape[0] - corner[0], -corner[1] : shape[1] - corner[1]]
        labels[:, :, x] = labels_by_nanmean(inside[None], [(0, 0)], shape)[0]
    return labels


def segment(report: Report, slices: int) -> None:
    model, volume = full_width_model(), scan_of(slices)
    torch.manual_seed(0)
    published = PublishedFCN8(6).eval()
    report.row(f"segment 300 x 220 x {slices} mm, thesis profile",
               lambda: model.segment(prepare(volume, THESIS.grid_mm), volume.image.shape),
               [Other("published layout, NaN, scikit-image", lambda: segment_by_published(published, volume), 6)],
               rounds=1, warm_up=False)


def loader(report: Report) -> None:
    """Time in which the network waits for its next batch, as a share of the step.  A GPU's batches are made ahead."""
    for profile, axis, steps in ((CLASSROOM, "sagittal", 60), (CLASSROOM, "transverse", 60), (THESIS, "sagittal", 3)):
        waited, whole = waiting(profile, axis, steps)
        report.line(f"loader's share of a step, {profile.name}, {axis}",
                    f"  {waited / whole:.1%} of {whole * 1e3:.0f} ms (asked: below 3%)", share=waited / whole,
                    step_seconds=whole)


def waiting(profile: Profile, axis: str, steps: int) -> tuple[float, float]:
    """Median seconds of waiting for a batch, and of a step with the profile's own terms and batch."""
    scans = [prepare(make_phantom(seed), profile.grid_mm) for seed in range(2)]
    num_classes = 2 if axis == "transverse" else 6
    dataset = SliceDataset(draw_points(scans, 0), axis, num_classes, profile.input_px, profile.augmentation, 0,
                           CLASSROOM.extent_radius_mm)
    network = replace(profile, imagenet=False).network(num_classes, 0).to(device(), memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=True)
    batches, terms, times = dataset.batches(profile.weak.batch, 0), terms_named(profile.terms, profile), []
    for i in range(steps + 3):
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - start
        batch = tuple(x.to(device()) for x in batch)
        training_step(network, batch, Move(bool(i % 2), i % 4), terms, optimizer)["total"].item()
        times.append((waited, time.perf_counter() - start))
    return tuple(statistics.median(t) for t in zip(*times[3:]))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"forward": forward, "step": step, "segment": lambda report: segment(report, o.slices), "loader": loader}
    p.add_argument("--only", nargs="+", choices=list(parts), default=list(parts), metavar="WORD",
                   help=f"some of {', '.join(parts)}")
    p.add_argument("--slices", type=int, default=24, help="sagittal slices of the scan to segment (default 24)")
    o = p.parse_args()
    report = Report("network")
    for part in o.only:
        parts[part](report)


if __name__ == "__main__":
    main()
