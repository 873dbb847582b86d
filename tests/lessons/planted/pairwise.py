"""Wrong answers to the assignment pairwise: (solution cell, points lost, words of the message)."""

WRAPS_AROUND = '''
from torch import Tensor


def pairwise_loss(logits: Tensor, image: Tensor, sigma: float = 0.1) -> Tensor:
    p = logits.softmax(1)
    total, pairs = 0.0, 0
    for axis in (-1, -2):
        weight = torch.exp(-((image - image.roll(-1, axis)) ** 2) / (2 * sigma**2))
        total = total + (weight * ((p - p.roll(-1, axis)) ** 2).sum(1)).sum()
        pairs += weight.numel()
    return total / max(1, pairs)


print(f"on the edge: correct is 0, yours is {pairwise_loss(on_edge, toy_image):.4g}")
print(f"off the edge: correct is 0.3333, yours is {pairwise_loss(off_edge, toy_image):.4g}")
'''

WITHOUT_IMAGE = '''
from torch import Tensor


def pairwise_loss(logits: Tensor, image: Tensor, sigma: float = 0.1) -> Tensor:
    p = logits.softmax(1)
    right = ((p[..., 1:] - p[..., :-1]) ** 2).sum(1)
    lower = ((p[..., 1:, :] - p[..., :-1, :]) ** 2).sum(1)
    return (right.sum() + lower.sum()) / max(1, right.numel() + lower.numel())


print(f"on the edge: correct is 0, yours is {pairwise_loss(on_edge, toy_image):.4g}")
print(f"off the edge: correct is 0.3333, yours is {pairwise_loss(off_edge, toy_image):.4g}")
'''

LOGITS = '''
from torch import Tensor


def pairwise_loss(logits: Tensor, image: Tensor, sigma: float = 0.1) -> Tensor:
    total, pairs = 0.0, 0
    for axis in (-1, -2):
        weight = torch.exp(-(image.diff(dim=axis) ** 2) / (2 * sigma**2))
        total = total + (weight * (logits.diff(dim=axis) ** 2).sum(1)).sum()
        pairs += weight.numel()
    return total / max(1, pairs)


print(f"on the edge: correct is 0, yours is {pairwise_loss(on_edge, toy_image):.4g}")
print(f"off the edge: correct is 0.3333, yours is {pairwise_loss(off_edge, toy_image):.4g}")
'''

WRONG = [
    (WRAPS_AROUND, 6, "torch.roll wraps around"),
    (WITHOUT_IMAGE, 3, "the image's weight is missing"),
    (LOGITS, 8, "Compare logits.softmax(1), not logits"),
]
