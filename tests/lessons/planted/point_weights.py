"""Wrong answers to the assignment point_weights: (solution cell, points lost, words of the message)."""

ABSENT_CLASSES = '''
from torch import Tensor


def balanced_point_loss(logits: Tensor, labels: Tensor) -> Tensor:
    counts = torch.stack([(labels == k).sum() for k in range(logits.shape[1])]).to(logits.dtype)
    weights = 1 / counts
    return point_loss(logits, labels, weights / weights.mean())


value = balanced_point_loss(toy_logits, toy_labels)
print(f"correct is 2 ln 2, yours is {value / math.log(2):.4g} ln 2")
'''

FREQUENCY = '''
from torch import Tensor


def balanced_point_loss(logits: Tensor, labels: Tensor) -> Tensor:
    counts = torch.stack([(labels == k).sum() for k in range(logits.shape[1])]).to(logits.dtype)
    present = counts > 0
    weights = counts * present.sum() / counts.sum().clamp(min=1)
    return point_loss(logits, labels, weights)


value = balanced_point_loss(toy_logits, toy_labels)
print(f"correct is 2 ln 2, yours is {value / math.log(2):.4g} ln 2")
'''

ALL_PIXELS = '''
import torch.nn.functional as F
from torch import Tensor


def balanced_point_loss(logits: Tensor, labels: Tensor) -> Tensor:
    counts = torch.stack([(labels == k).sum() for k in range(logits.shape[1])]).to(logits.dtype)
    present = counts > 0
    weights = torch.where(present, 1 / counts.clamp(min=1), 0)
    weights = weights * present.sum() / weights.sum().clamp(min=1e-12)
    return F.cross_entropy(logits, labels.long(), weights, ignore_index=255, reduction="none").mean()


value = balanced_point_loss(toy_logits, toy_labels)
print(f"correct is 2 ln 2, yours is {value / math.log(2):.4g} ln 2")
'''

WRONG = [
    (ABSENT_CLASSES, 5, "Give an absent class the weight 0"),
    (FREQUENCY, 8, "weights from the frequency, not from its inverse"),
    (ALL_PIXELS, 10, "You divide by all pixels"),
]
