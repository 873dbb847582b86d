"""Wrong answers to the assignment size_prior: (solution cell, points lost, words of the message)."""

CLASSES_WITHOUT_POINTS = '''
from torch import Tensor


def size_loss(logits: Tensor, labels: Tensor, low: float, high: float) -> Tensor:
    share = logits.softmax(1).mean((2, 3))[:, 1:]
    outside = (low - share).clamp(min=0) + (share - high).clamp(min=0)
    return ((outside / share.clamp(min=low)) ** 2).mean()


print(f"correct is 0.125, yours is {size_loss(toy_logits, toy_labels, LOW, HIGH):.4g}")
'''

HARD_PIXELS = '''
from torch import Tensor


def size_loss(logits: Tensor, labels: Tensor, low: float, high: float) -> Tensor:
    predicted = logits.argmax(1)
    total, count = torch.zeros(()), 0
    for b in range(len(logits)):
        for k in range(1, logits.shape[1]):
            if (labels[b] == k).any():
                share = (predicted[b] == k).float().mean()
                outside = (low - share).clamp(min=0) + (share - high).clamp(min=0)
                total, count = total + (outside / share.clamp(min=low)) ** 2, count + 1
    return total / max(1, count)


print(f"correct is 0.125, yours is {size_loss(toy_logits, toy_labels, LOW, HIGH):.4g}")
'''

ONE_SIZE = '''
from torch import Tensor


def size_loss(logits: Tensor, labels: Tensor, low: float, high: float) -> Tensor:
    share = logits.softmax(1).mean((2, 3))[:, 1:]
    pointed = torch.stack([(labels == k).flatten(1).any(1) for k in range(1, logits.shape[1])], 1)
    distance = share - (low + high) / 2
    return (pointed * (distance / share.clamp(min=low)) ** 2).sum() / pointed.sum().clamp(min=1)


print(f"correct is 0.125, yours is {size_loss(toy_logits, toy_labels, LOW, HIGH):.4g}")
'''

WRONG = [
    (CLASSES_WITHOUT_POINTS, 5, "a point on the slice costs nothing"),
    (HARD_PIXELS, 10, "These are the pixels of argmax"),
    (ONE_SIZE, 8, "the distance from the middle of the bounds"),
]
