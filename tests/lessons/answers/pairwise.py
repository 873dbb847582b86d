"""Answers to pairwise: right ones in several styles; and mistakes: what the check says, what change makes it."""

import torch
from torch.nn.functional import pad


def slicing(logits, image, sigma=0.1):
    p = logits.softmax(1)
    right = (p[..., 1:] - p[..., :-1]).square().sum(1) * (-(image[..., 1:] - image[..., :-1]) ** 2 / 2 / sigma**2).exp()
    lower = (p[:, :, 1:] - p[:, :, :-1]).square().sum(1) * (-(image[:, 1:] - image[:, :-1]) ** 2 / 2 / sigma**2).exp()
    return (right.sum() + lower.sum()) / max(1, right.numel() + lower.numel())


def pixel_by_pixel(logits, image, sigma=0.1):
    batch, _, height, width = logits.shape
    p, total, pairs = logits.softmax(1), logits.new_zeros(()), 0
    for y in range(height):
        for x in range(width):
            for v, u in ((y, x + 1), (y + 1, x)):
                if v < height and u < width:
                    weight = torch.exp(-((image[:, y, x] - image[:, v, u]) ** 2) / (2 * sigma**2))  # (B,)
                    total = total + torch.einsum("b,bk->", weight, (p[:, :, y, x] - p[:, :, v, u]) ** 2)
                    pairs += batch
    return total / max(pairs, 1)


def einsum_with_ones(logits, image, sigma=0.1):
    p, total, pairs = logits.softmax(1), 0.0, 0
    for axis in (-1, -2):
        weight = torch.exp(-0.5 * (image.diff(dim=axis) / sigma) ** 2)
        total = total + torch.einsum("bhw,bkhw,k->", weight, p.diff(dim=axis) ** 2, torch.ones(p.shape[1]))
        pairs += weight.numel()
    return total / max(1, pairs)


def rolled_and_masked(logits, image, sigma=0.1):
    p, kept = logits.softmax(1), []
    for axis in (-1, -2):
        last = torch.zeros(image.shape, dtype=torch.bool)
        last.select(axis, -1).fill_(True)
        alike = torch.exp(-((image - image.roll(-1, axis)) ** 2) / (2 * sigma**2))
        kept.append((alike * (p - p.roll(-1, axis)).square().sum(1))[~last])
    kept = torch.cat(kept)
    return kept.sum() / max(1, len(kept))


def in_place(logits, image, sigma=0.1):
    p, cost, pairs = logits.softmax(1), torch.zeros(image.shape), torch.zeros(image.shape)
    for shape in ((0, 1, 0, 0), (0, 0, 0, 1)):  # the pixel's right neighbour, then its lower one
        size = image.shape[1] - shape[3], image.shape[2] - shape[1]
        here, there = (..., slice(0, size[0]), slice(0, size[1])), (..., slice(shape[3], None), slice(shape[1], None))
        weight = torch.exp(-((image[here] - image[there]) ** 2) / (2 * sigma**2))
        cost += pad(weight * (p[here] - p[there]).square().sum(1), shape)
        pairs += pad(torch.ones(weight.shape), shape)
    return cost.sum() / pairs.sum().clamp(min=1)


def by_the_product(logits, image, sigma=0.1):
    p, terms = logits.softmax(1), []
    for axis, length in ((3, logits.shape[3]), (2, logits.shape[2])):
        a, b = p.narrow(axis, 0, length - 1), p.narrow(axis, 1, length - 1)
        difference = image.narrow(axis - 1, 0, length - 1) - image.narrow(axis - 1, 1, length - 1)
        terms.append((torch.exp(-(difference**2) / (2 * sigma**2)) * (a * a + b * b - 2 * a * b).sum(1)).flatten())
    terms = torch.cat(terms)
    return terms.mean() if len(terms) else 0 * logits.sum()


RIGHT = [slicing, pixel_by_pixel, einsum_with_ones, rolled_and_masked, in_place, by_the_product]
WRONG = {
    "torch.roll wraps around": {"image.diff(dim=axis)": "(image - image.roll(-1, axis))",
                                "p.diff(dim=axis)": "(p - p.roll(-1, axis))"},
    "The image's weight is missing": {"2 * sigma**2": "1e9"},
    "differences of logits, not of probabilities": {"logits.softmax(1)": "logits"},
    "the sum of two means": {"(p.diff(dim=axis) ** 2).sum(1)).sum()": "(p.diff(dim=axis) ** 2).sum(1)).mean()",
                             "total / max(1, pairs)": "total"},
    "do not take their mean": {".sum(1)": ".mean(1)"},
    "The lower neighbours are missing": {"(-1, -2)": "(-1,)"},
    "Square the differences of the probabilities": {"(p.diff(dim=axis) ** 2)": "p.diff(dim=axis).abs()"},
    "The 2 in 2 sigma² is missing": {"2 * sigma**2": "sigma**2"},
    "sigma is not squared": {"2 * sigma**2": "2 * sigma"},
    "You divide by the sum of the weights": {"weight.numel()": "weight.sum()", "max(1, pairs)": "max(1e-9, pairs)"},
    "You add up the slices": {"weight.numel()": "weight[0].numel()"},
    "expected a tensor of one number": {"total / max(1, pairs)": "total.item() / max(1, pairs)"},
    "sigma is an argument": {"2 * sigma**2": "2 * 0.1**2"},
    "0 / 0 is nan": {"max(1, pairs)": "torch.tensor(pairs)"},
}
