"""Wrong answers to the assignment point_weights: (solution cell, points lost, words of the message)."""

ABSENT_CLASSES = '''
def balanced_point_loss(logits, labels):
    counts = torch.stack([(labels == k).sum() for k in range(logits.shape[1])]).to(logits.dtype)
    weights = 1 / counts
    return point_loss(logits, labels, weights / weights.mean())
'''

FREQUENCY = '''
def balanced_point_loss(logits, labels):
    counts = torch.stack([(labels == k).sum() for k in range(logits.shape[1])]).to(logits.dtype)
    present = counts > 0
    weights = counts * present.sum() / counts.sum().clamp(min=1)
    return point_loss(logits, labels, weights)
'''

ALL_PIXELS = '''
import torch.nn.functional as F


def balanced_point_loss(logits, labels):
    counts = torch.stack([(labels == k).sum() for k in range(logits.shape[1])]).to(logits.dtype)
    present = counts > 0
    weights = torch.where(present, 1 / counts.clamp(min=1), 0)
    weights = weights * present.sum() / weights.sum().clamp(min=1e-12)
    return F.cross_entropy(logits, labels.long(), weights, ignore_index=255, reduction="none").mean()
'''

WRONG = [
    (ABSENT_CLASSES, 5, "Give an absent class the weight 0"),
    (FREQUENCY, 8, "weights from the frequency, not from its inverse"),
    (ALL_PIXELS, 8, "You divide by all pixels"),
]
