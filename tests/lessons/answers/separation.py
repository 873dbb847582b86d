"""Answers to separation: right ones in several styles; and mistakes: what the check says, what change makes it."""

import torch


def pairs_by_index(logits):
    p = logits.softmax(1)
    m, n = torch.triu_indices(p.shape[1], p.shape[1], offset=1)
    return (p[:, m] * p[:, n]).sum(1).mean()


def pixel_by_pixel(logits):
    total, pixels = 0.0, 0
    for answer in logits.softmax(1).movedim(1, -1).flatten(0, 2):
        others = torch.einsum("m,n,mn->", answer, answer, 1 - torch.eye(len(answer)))
        total, pixels = total + others / 2, pixels + 1
    return total / pixels


def einsum_with_ones(logits):
    p, k = logits.softmax(1), logits.shape[1]
    return torch.einsum("bmhw,mn,bnhw->bhw", p, torch.ones(k, k).triu(1), p).mean()


def masked_products(logits):
    p, k = logits.softmax(1).movedim(1, -1), logits.shape[1]  # (B, H, W, K)
    products = p[..., :, None] @ p[..., None, :]
    return products[..., torch.ones(k, k, dtype=torch.bool).triu(1)].sum(-1).mean()


def in_place(logits):
    e = (logits - logits.amax(1, keepdim=True)).exp()
    p = e / e.sum(1, keepdim=True)
    overlap, before = torch.zeros(p[:, 0].shape), torch.zeros(p[:, 0].shape)
    for k in range(p.shape[1]):
        overlap += before.clone() * p[:, k]
        before += p[:, k]
    return overlap.mean()


def in_double_precision(logits):
    p = logits.double().softmax(1)
    return ((p.sum(1) ** 2 - (p**2).sum(1)) / 2).mean()


RIGHT = [pairs_by_index, pixel_by_pixel, einsum_with_ones, masked_products, in_place, in_double_precision]
PAIRS = "(1 - (p * p).sum(1))"  # of each pixel, twice
WRONG = {
    "You count every pair twice": {".mean() / 2": ".mean()"},
    "Is there an argmax or a round in it?": {
        "logits.softmax(1)": "torch.eye(logits.shape[1])[logits.argmax(1)].movedim(-1, 1)"},
    "the sum over the pixels, not their mean": {".mean()": ".sum()"},
    "expected a tensor of one number": {".mean()": ""},
    "You add up the slices": {".mean()": ".mean((1, 2)).sum()"},
    "the mean over the pairs, not their sum": {".mean() / 2": ".mean() / p.shape[1] / (p.shape[1] - 1)"},
    "a class does not overlap with itself": {PAIRS: PAIRS.replace("-", "+")},
    "only the pairs of neighbouring classes": {PAIRS: "2 * (p[:, 1:] * p[:, :-1]).sum(1)"},
    "only the pairs of the first three classes": {PAIRS: "(p[:, :3].sum(1) ** 2 - (p[:, :3] ** 2).sum(1))"},
    "Sigmoids judge each class alone": {"logits.softmax(1)": "logits.sigmoid()",
                                        PAIRS: "(p.sum(1) ** 2 - (p * p).sum(1))"},
    "over the classes, dimension 1": {"logits.softmax(1)": "logits.softmax(-1)"},
    "differences of the probabilities, not their products": {
        PAIRS: "-(p[:, None] - p[:, :, None]).abs().sum((1, 2))"},
    "The sign is wrong": {PAIRS: "-" + PAIRS},
    "a factor of 2 comes from a detach()": {"p * p": "p * p.detach()"},
}
