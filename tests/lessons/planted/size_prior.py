"""Wrong answers to the assignment size_prior: (solution cell, points lost, words of the message)."""

CLASSES_WITHOUT_POINTS = '''
def size_loss(logits, labels, low, high):
    share = logits.softmax(1).mean((2, 3))[:, 1:]
    outside = (low - share).clamp(min=0) + (share - high).clamp(min=0)
    return ((outside / share.clamp(min=low)) ** 2).mean()
'''

HARD_PIXELS = '''
def size_loss(logits, labels, low, high):
    predicted = logits.argmax(1)
    total, count = torch.zeros(()), 0
    for b in range(len(logits)):
        for k in range(1, logits.shape[1]):
            if (labels[b] == k).any():
                share = (predicted[b] == k).float().mean()
                outside = (low - share).clamp(min=0) + (share - high).clamp(min=0)
                total, count = total + (outside / share.clamp(min=low)) ** 2, count + 1
    return total / max(1, count)
'''

ONE_SIZE = '''
def size_loss(logits, labels, low, high):
    share = logits.softmax(1).mean((2, 3))[:, 1:]
    pointed = torch.stack([(labels == k).flatten(1).any(1) for k in range(1, logits.shape[1])], 1)
    distance = share - (low + high) / 2
    return (pointed * (distance / share.clamp(min=low)) ** 2).sum() / pointed.sum().clamp(min=1)
'''

WRONG = [
    (CLASSES_WITHOUT_POINTS, 3, "a point on the slice costs nothing"),
    (HARD_PIXELS, 10, "These are the pixels of argmax"),
    (ONE_SIZE, 8, "the distance from the middle of the bounds"),
]
