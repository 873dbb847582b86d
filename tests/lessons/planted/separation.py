"""Wrong answers to the assignment separation: (solution cell, points lost, words of the message)."""

EVERY_PAIR_TWICE = '''
from torch import Tensor

from pointseg.losses import mean_or_zero


def overlap_loss(logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    classes = range(p.shape[1])
    return sum(mean_or_zero(p[:, m] * p[:, n]) for m in classes for n in classes if m != n)


print(f"correct is {31 / 144:.4f}, yours is {overlap_loss(toy_logits):.4f}")
'''

DECIDED_BY_ARGMAX = '''
from torch import Tensor
from torch.nn.functional import one_hot

from pointseg.losses import mean_or_zero


def overlap_loss(logits: Tensor) -> Tensor:
    p = one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1).float()
    return mean_or_zero(1 - (p * p).sum(1)) / 2


print(f"correct is {31 / 144:.4f}, yours is {overlap_loss(toy_logits):.4f}")
'''

SUM_OVER_PIXELS = '''
from torch import Tensor


def overlap_loss(logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    return (1 - (p * p).sum(1)).sum() / 2


print(f"correct is {31 / 144:.4f}, yours is {overlap_loss(toy_logits):.4f}")
'''

WRONG = [
    (EVERY_PAIR_TWICE, 8, "You count every pair twice"),
    (DECIDED_BY_ARGMAX, 10, "Is there an argmax or a round in it?"),
    (SUM_OVER_PIXELS, 10, "the sum over the pixels, not their mean"),
]
