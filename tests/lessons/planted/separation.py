"""Wrong answers to the assignment separation: (solution cell, points lost, words of the message)."""

EVERY_PAIR_TWICE = '''
def overlap_loss(logits):
    p = logits.softmax(1)
    classes = range(p.shape[1])
    return sum((p[:, m] * p[:, n]).mean() for m in classes for n in classes if m != n)
'''

DECIDED_BY_ARGMAX = '''
from torch.nn.functional import one_hot


def overlap_loss(logits):
    p = one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1).float()
    return (1 - (p * p).sum(1)).mean() / 2
'''

SUM_OVER_PIXELS = '''
def overlap_loss(logits):
    p = logits.softmax(1)
    return (1 - (p * p).sum(1)).sum() / 2
'''

WRONG = [
    (EVERY_PAIR_TWICE, 8, "You count every pair twice"),
    (DECIDED_BY_ARGMAX, 10, "Is there an argmax or a round in it?"),
    (SUM_OVER_PIXELS, 10, "the sum over the pixels, not their mean"),
]
