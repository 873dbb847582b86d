"""Answers to size_prior: right ones in several styles; and mistakes: what the check says, what change makes it."""

import torch
from torch.nn.functional import one_hot


def by_where(logits, labels, low, high):
    area = logits.softmax(1).mean((2, 3))
    pointed = torch.stack([(labels == k).flatten(1).any(1) for k in range(logits.shape[1])], 1)
    pointed[:, 0] = False
    too_large = torch.where(area > high, (area - high) / area.clamp(min=high), 0.0)
    distance = torch.where(area < low, (low - area) / low, too_large)
    return torch.where(pointed, distance**2, 0.0).sum() / max(1, int(pointed.sum()))


def loops_with_if(logits, labels, low, high):
    p, costs = logits.softmax(1), []
    for b in range(len(p)):
        for k in range(1, p.shape[1]):
            if k in labels[b]:
                area, cost = p[b, k].mean(), torch.tensor(0.0)
                if area < low:
                    cost = ((low - area) / low) ** 2
                elif area > high:
                    cost = ((area - high) / area) ** 2
                costs.append(cost)
    return torch.stack(costs).mean() if costs else torch.tensor(0.0)


def einsum_with_ones(logits, labels, low, high):
    height, width = labels.shape[1:]
    area = torch.einsum("bkhw,h,w->bk", logits.softmax(1), torch.ones(height), torch.ones(width)) / (height * width)
    pointed = torch.stack([(labels == k).sum((1, 2)) > 0 for k in range(1, logits.shape[1])]).T.float()
    outside = torch.relu(low - area) + torch.relu(area - high)
    cost = (outside / torch.maximum(area, torch.tensor(low)))[:, 1:] ** 2
    return torch.einsum("bk,bk->", pointed, cost) / pointed.sum().clamp(min=1)


def one_hot_points(logits, labels, low, high):
    k = logits.shape[1]
    pointed = one_hot(torch.where(labels < k, labels, 0).long(), k).amax((1, 2))[:, 1:]  # (B, K - 1)
    area = logits.softmax(1)[:, 1:].mean((-2, -1))
    outside = torch.stack([low - area, torch.zeros_like(area), area - high]).amax(0)
    return (pointed * (outside / area.clamp(min=low)).square()).sum() / pointed.sum().clamp(min=1)


def masked_selection(logits, labels, low, high):
    pointed = torch.stack([(labels == k).flatten(1).any(1) for k in range(1, logits.shape[1])], 1)
    area = logits.softmax(1).flatten(2).mean(2)[:, 1:][pointed]  # of the vertebrae with a point alone
    if len(area) == 0:
        return torch.zeros(())
    inside = area.clamp(low, high)
    return ((area - inside) / area.clamp(min=low)).square().mean()


def in_place(logits, labels, low, high):
    p = logits.softmax(1).mean((2, 3))
    cost = torch.zeros(p.shape)
    for k in range(1, p.shape[1]):
        here = (labels == k).any(2).any(1)
        cost[here, k] += ((low - p[here, k]).clamp(min=0) / low) ** 2
        cost[here, k] += ((p[here, k] - high).clamp(min=0) / p[here, k].clamp(min=high)) ** 2
    pairs = sum(len(y[(y > 0) & (y < 255)].unique()) for y in labels)
    return cost.sum() / max(1, pairs)


RIGHT = [by_where, loops_with_if, einsum_with_ones, one_hot_points, masked_selection, in_place]
EACH = "(pointed * wrong**2).sum() / pointed.sum().clamp(min=1)"
WRONG = {
    "A vertebra without a point on the slice costs nothing": {EACH: "(wrong**2).mean()"},
    "Divide by the number of vertebrae with a point": {EACH: "(pointed * wrong**2).mean()"},
    "the sum over the vertebrae, not their mean": {EACH: "(pointed * wrong**2).sum()"},
    "the mean of the slices' means": {
        EACH: "((pointed * wrong**2).sum(1) / pointed.sum(1).clamp(min=1)).mean()"},
    "asked of each slice, not of the whole batch": {"p.flatten(1).any(1)": "p.any().repeat(len(p))"},
    "the share of the whole batch": {"mean((2, 3))": "mean((0, 2, 3), keepdim=True)[..., 0, 0].repeat(len(logits), 1)"},
    "counts once, however many points": {"any(1)": "sum(1)"},
    "The background has no size to keep": {"[:, 1:]": "", "range(1, ": "range("},
    "These are the pixels of argmax": {
        "logits.softmax(1)": "torch.eye(logits.shape[1])[logits.argmax(1)].movedim(-1, 1)"},
    "the distance from the middle of the bounds": {
        "(low - share).clamp(min=0) + (share - high).clamp(min=0)": "share - (low + high) / 2"},
    "below the lower bound counts as well": {"(low - share).clamp(min=0) + ": ""},
    "You have not divided the distance": {" / share.clamp(min=low)": ""},
    "divided by the lower bound": {"share.clamp(min=low)": "share"},
    "The square is missing": {"wrong**2": "wrong"},
}
