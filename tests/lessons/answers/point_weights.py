"""Answers to point_weights: right ones in several styles; and mistakes: what the check says, what change makes it."""

import torch
import torch.nn.functional as F


def mean_of_class_means(logits, labels):
    log_p, costs = logits.log_softmax(1), []
    for k in range(logits.shape[1]):
        if (labels == k).any():
            costs.append(-log_p[:, k][labels == k].mean())  # masked selection
    return torch.stack(costs).mean() if costs else 0 * logits.sum()


def point_by_point(logits, labels):
    counts = torch.bincount(labels[labels != 255].long(), minlength=logits.shape[1])
    total, weights = torch.zeros(()), 0.0
    for b, y, x in (labels != 255).nonzero().tolist():
        k = int(labels[b, y, x])
        total = total - logits[b, :, y, x].log_softmax(0)[k] / counts[k]
        weights += 1 / int(counts[k])
    return total / max(weights, 1e-12)


def float32_weights(logits, labels):
    counts = torch.tensor([float((labels == k).sum()) for k in range(logits.shape[1])])  # never cast to the logits'
    weights = torch.where(counts > 0, 1 / counts, 0)
    if not weights.any():
        return logits.sum() * 0
    return F.cross_entropy(logits, labels.long(), weights, ignore_index=255)


def one_hot_einsum(logits, labels):
    k = logits.shape[1]
    hot = F.one_hot(labels.long().clamp(max=k), k + 1)[..., :k].float()  # (B, H, W, K), unlabelled: no class
    counts = hot.sum((0, 1, 2))
    costs = -torch.einsum("bkhw,bhwk->k", logits.log_softmax(1), hot) / counts.clamp(min=1)
    return torch.einsum("k,k->", costs, torch.ones(k)) / (counts > 0).sum().clamp(min=1)


def matrix_product(logits, labels):
    classes = torch.arange(logits.shape[1])[:, None]
    at = (labels.flatten()[None] == classes).float()  # (K, pixels)
    weights = (at / at.sum(1, keepdim=True).clamp(min=1)).T  # (pixels, K)
    log_p = logits.log_softmax(1).movedim(1, 0).flatten(1)
    return -(log_p @ weights).trace() / weights.sum().clamp(min=1)


def in_place(logits, labels):
    weights = torch.ones(labels.shape)
    for k in range(logits.shape[1]):
        weights[labels == k] /= (labels == k).sum()
    weights[labels == 255] = 0
    cost = F.cross_entropy(logits, labels.long(), ignore_index=255, reduction="none")
    cost *= weights
    return cost.sum() / weights.sum().clamp(min=1e-12)


RIGHT = [mean_of_class_means, point_by_point, float32_weights, one_hot_einsum, matrix_product, in_place]
WEIGHTS = "1 / counts.to(logits.dtype)"
LOSS = "point_loss(logits, labels, weights)"
LOSS_BY = "torch.nn.functional.cross_entropy(logits, labels.long(), weights, ignore_index=255, reduction={})"
WRONG = {
    "Give an absent class the weight 0": {f"torch.where(present, {WEIGHTS}, 0)": WEIGHTS,
                                          "* present.sum() / weights.sum().clamp(min=1e-12)": "/ weights.mean()"},
    "Every point still counts the same": {LOSS: "point_loss(logits, labels)"},
    "weights from the frequency, not from its inverse": {WEIGHTS: "counts.to(logits.dtype)"},
    "the square root of one over the number": {WEIGHTS: "counts**-0.5"},
    "the square of one over the number": {WEIGHTS: f"({WEIGHTS}) ** 2"},
    "You divide by all pixels": {LOSS: LOSS_BY.format("'none'") + ".mean()"},
    "You divide by the number of points": {LOSS: LOSS_BY.format("'sum'") + " / counts.sum().clamp(min=1)"},
    "the sum over the classes, not their mean": {LOSS: LOSS + " * present.sum()"},
    "An absent class counts in your mean": {LOSS: LOSS + " * present.sum() / len(present)"},
    "counted over the whole batch, not slice by slice": {"counts = ": """if len(logits) > 1:
        slices = zip(logits, labels)
        return torch.stack([balanced_point_loss(z[None], y[None]) for z, y in slices]).mean()
    counts = """},
    "Unlabelled pixels count as background": {"counts = ": "labels = labels.where(labels != 255, 0); counts = "},
    "The background is left out": {LOSS: "point_loss(logits, labels, weights * (torch.arange(len(weights)) > 0))"},
    "0 / 0 is nan": {LOSS: LOSS_BY.format("'mean'")},
}
