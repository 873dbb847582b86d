"""Wrong answers to the assignment pairwise: (solution cell, points lost, words of the message)."""

WRAPS_AROUND = '''
def pairwise_loss(logits, image, sigma=0.1):
    p = logits.softmax(1)
    total, pairs = 0.0, 0
    for axis in (-1, -2):
        weight = torch.exp(-((image - image.roll(-1, axis)) ** 2) / (2 * sigma**2))
        total = total + (weight * ((p - p.roll(-1, axis)) ** 2).sum(1)).sum()
        pairs += weight.numel()
    return total / max(1, pairs)
'''

WITHOUT_IMAGE = '''
def pairwise_loss(logits, image, sigma=0.1):
    p = logits.softmax(1)
    right = ((p[..., 1:] - p[..., :-1]) ** 2).sum(1)
    lower = ((p[..., 1:, :] - p[..., :-1, :]) ** 2).sum(1)
    return (right.sum() + lower.sum()) / max(1, right.numel() + lower.numel())
'''

LOGITS = '''
def pairwise_loss(logits, image, sigma=0.1):
    total, pairs = 0.0, 0
    for axis in (-1, -2):
        weight = torch.exp(-(image.diff(dim=axis) ** 2) / (2 * sigma**2))
        total = total + (weight * (logits.diff(dim=axis) ** 2).sum(1)).sum()
        pairs += weight.numel()
    return total / max(1, pairs)
'''

WRONG = [
    (WRAPS_AROUND, 6, "torch.roll wraps around"),
    (WITHOUT_IMAGE, 3, "the image's weight is missing"),
    (LOGITS, 8, "Compare logits.softmax(1), not logits"),
]
