"""Is a loss term of one's own sound?  `check_term` tries it on small steps and answers in sentences.

    print(check_term(my_term, invariant=("flip", "rotation")))

Axis letters as in `losses`: B batch, K classes, H height, W width.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pointseg.kernels import extent_mask
from pointseg.losses import Move, Step, Term
from pointseg.points import sample_points
from pointseg.scans.files import first_line
from pointseg.volume import BACKGROUND, UNLABELLED

# --- a step to try a term on ---

def example_step(num_classes: int = 6, seed: int = 0, batch: int = 2, size: tuple[int, int] = (24, 16)) -> Step:
    """A small training step: vertebrae one below the other, points, extent, random logits that one can derive by.

    `logits` and `moved_logits` are leaves: `my_term(step).backward()` leaves its gradient in `step.logits.grad`.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    truth = np.zeros((height, width, batch), np.uint8)
    bands = np.linspace(1, height - 1, num_classes).astype(int)  # K - 1 vertebrae, a row of disc between them
    for k, (top, bottom) in enumerate(zip(bands, bands[1:]), start=1):
        truth[top : bottom - 1, width // 4 : 3 * width // 4] = k
    image = (truth > 0) * 0.5 + 0.3 + 0.05 * rng.standard_normal(truth.shape)
    labels = sample_points(truth, rng)  # (H, W, B): the batch in the place of the sagittal slices
    extent = np.ones((batch, num_classes, *size), bool)
    for b, k in np.ndindex(batch, num_classes):
        if k != BACKGROUND:
            extent[b, k] = extent_mask(np.argwhere(labels[..., b] == k), size, (1.0, 1.0), radius_mm=height / 3)
    step = Step(network=torch.nn.Conv2d(3, num_classes, 1),
                image=torch.from_numpy(image).float().movedim(-1, 0)[:, None].repeat(1, 3, 1, 1),
                labels=torch.from_numpy(labels).movedim(-1, 0).contiguous(),
                extent=torch.from_numpy(extent), move=Move(bool(rng.integers(2)), int(rng.integers(4))))
    logits = torch.from_numpy(2 * rng.standard_normal((batch, num_classes, *size))).float()
    noise = torch.from_numpy(rng.standard_normal((batch, num_classes, *size))).float()
    return with_logits(step, logits, step.move(logits + noise))


def with_logits(step: Step, logits: Tensor | None = None, moved_logits: Tensor | None = None, **changes) -> Step:
    """A copy of the step, with these answers of the network instead of its own, and other changes by name."""
    new = replace(step, **changes)
    for name, x in (("logits", logits), ("moved_logits", moved_logits)):
        x = getattr(step, name) if x is None else x
        vars(new)[name] = x.detach().clone().requires_grad_()  # where cached_property keeps its value
    return new


def changed(step: Step, change: Callable[[Tensor], Tensor]) -> Step:
    """The step with `change` applied to its image, labels, extent and logits alike."""
    return with_logits(step, change(step.logits), change(step.moved_logits), image=change(step.image),
                       labels=change(step.labels), extent=change(step.extent))


def rename_classes(step: Step) -> Step:
    """L1..L5 called L2..L5, L1; background stays background."""
    k = step.logits.shape[1]
    order = torch.tensor([0, k - 1, *range(1, k - 1)])  # new class i is the old order[i]
    labels = step.labels.where((step.labels == BACKGROUND) | (step.labels == UNLABELLED), step.labels % (k - 1) + 1)
    return with_logits(step, step.logits[:, order], step.moved_logits[:, order], labels=labels,
                       extent=step.extent[:, order])


def without_points(step: Step, gone: Tensor) -> Step:
    """The step without the points where gone (B, H, W) is True; a class that has none left has no extent either."""
    labels = step.labels.masked_fill(gone, UNLABELLED)
    none_left = torch.tensor([not (labels == k).any() for k in range(step.extent.shape[1])])
    return with_logits(step, labels=labels, extent=step.extent | none_left[:, None, None])


def decided(step: Step, size: float) -> Step:
    return with_logits(step, size * step.logits.sign(), size * step.moved_logits.sign())


SITUATIONS: dict[str, Callable[[Step], Step]] = {
    "for logits of +-50": lambda step: decided(step, 50),
    "for logits of +-10000": lambda step: decided(step, 1e4),
    "with 2 classes, as on transverse slices": lambda step: example_step(num_classes=2),
    "where a class has no point": lambda step: without_points(step, step.labels == 1),
    "where no pixel is labelled": lambda step: without_points(step, step.labels != UNLABELLED),
}
INVARIANCES: dict[str, tuple[Callable[[Step], Step], str]] = {
    "flip": (lambda step: changed(step, Move(flip=True, quarter_turns=0)), "when slices are flipped"),
    "rotation": (lambda step: changed(step, Move(flip=False, quarter_turns=1)), "when slices are turned by 90 degrees"),
    "classes": (rename_classes, "when L1..L5 swap names"),
    "batch": (lambda step: changed(step, lambda x: torch.cat([x, x])), "for a batch that holds every slice twice"),
}
REGIONS: dict[str, Callable[[Step], Tensor]] = {  # -> (B, K, H, W) bool, or what broadcasts to it
    "unlabelled": lambda step: (step.labels == UNLABELLED)[:, None],
    "within extent": lambda step: step.extent,
    "background": lambda step: torch.arange(step.logits.shape[1])[:, None, None] == BACKGROUND,
}


# --- is a term sound? ---

@dataclass
class Report:
    """What `check_term` found, in sentences that begin with "ok:", "WRONG:" or "note:"."""

    sentences: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        return [s for s in self.sentences if s.startswith("WRONG")]

    @property
    def ok(self) -> bool:
        return not self.failed

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    __repr__ = __str__


class Wrong(Exception):
    """What a check found, as a sentence."""


def check_term(term: Term, *, zero_gradient: Sequence[str | Callable[[Step], Tensor]] = (),
               invariant: Sequence[str] = ()) -> Report:
    """Try a term (Step -> scalar) on small steps and say what is right and wrong with it.

    zero_gradient: where logits must not matter: "unlabelled", "within extent", "background", or your own function from
    a step to a mask (B, K, H, W) bool.  invariant: what must not change the value: "flip", "rotation", "classes",
    "batch".
    """
    checks = {"the value is one finite number": lambda: value_of(term, example_step())}
    checks |= {f"value and gradient are finite {when}": lambda when=when, change=change:
               gradients_of(term, change(example_step()), when) for when, change in SITUATIONS.items()}
    checks |= {"the gradient is what moving the logits a little does to the value": lambda: check_gradient(term),
               "the same step gives the same value twice and is left as it was": lambda: check_repeatable(term)}
    regions = {w: REGIONS[w] for w in zero_gradient if not callable(w)} | {
        w.__name__: w for w in zero_gradient if callable(w)}
    checks |= {f'no gradient where "{name}" holds': lambda name=name, region=region:
               check_no_gradient(term, region, name) for name, region in regions.items()}
    checks |= {f"the value stays the same {when}": lambda change=change, when=when:
               check_unchanged(term, change, when) for change, when in map(INVARIANCES.__getitem__, invariant)}
    report = Report()
    for promise, check in checks.items():
        try:
            check()
            report.sentences.append(f"ok: {promise}")
        except Wrong as finding:
            if f"WRONG: {finding}" not in report.sentences:
                report.sentences.append(f"WRONG: {finding}")
            if len(report.sentences) == 1:
                return report  # no number at all: whatever else is wrong follows from it
    try:  # torch's `meta` tensors have a shape and no content
        term(changed(example_step(), lambda x: x.to("meta")))
    except Exception as error:
        report.sentences.append("note: on a GPU it may fail, where it makes a tensor on the CPU (device="
                                "step.logits.device puts it right), or wait, where it looks at a value on its way "
                                f"(.item(), if): {first_line(error)}")
    return report


def value_of(term: Term, step: Step, when: str = "") -> Tensor:
    """The term's value, Wrong where it raises or is not one finite number."""
    when = when and f" {when}"
    try:
        value = term(step)
    except NotImplementedError:
        raise Wrong("the term is not written yet") from None
    except Exception as error:
        sentence = f"it raises {type(error).__name__}{when}: {first_line(error)}"
        with suppress(Exception):
            if isinstance(term(step.logits), Tensor):
                sentence = "it takes logits, but a term takes a step: write `lambda step: f(step.logits)`"
        raise Wrong(sentence) from None
    if not isinstance(value, Tensor):
        raise Wrong(f"it returns {type(value).__name__}{when}, expected a tensor of one number; "
                    "float() and .item() cut the gradient")
    if value.shape != ():
        raise Wrong(f"it returns a tensor of shape {tuple(value.shape)}{when}, expected one number, of shape (): take "
                    "the mean of what is left")
    if not value.isfinite():
        raise Wrong(f"its value is {value.item()}{when}, expected a finite number")
    return value


def gradients_of(term: Term, step: Step, when: str = "") -> list[Tensor]:
    """Derivatives by logits and by moved logits, zeros where the term does not depend on them."""
    value, leaves = value_of(term, step, when), [step.logits, step.moved_logits]
    if not value.requires_grad:  # with these logits a constant may do: `check_gradient` looks at others
        return [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    if not all(g.isfinite().all() for g in found):
        raise Wrong(f"its gradient is not finite{when and ' ' + when}: look for a division by 0, a log or a root of 0")
    return list(found)


def check_gradient(term: Term) -> None:
    """Along a random direction, for logits that favour nothing, background, or vertebrae.

    In float32, as in a training: in double precision a term with a tensor of its own would meet two dtypes.  So h is
    large enough for rounding and small enough for the kinks of an abs(), and both are allowed for.
    """
    h, generator, sizes = 1e-3, torch.Generator().manual_seed(0), []
    for lead in (0.0, 8.0, -8.0):
        step = example_step()
        favour = torch.zeros_like(step.logits)
        favour[:, BACKGROUND] = lead
        step = with_logits(step, step.logits + favour, step.moved_logits + step.move(favour))
        leaves, gradients = (step.logits, step.moved_logits), gradients_of(term, step)
        along = [torch.randn(x.shape, generator=generator) for x in leaves]
        ahead, behind = (value_of(term, with_logits(step, *(x + s * d for x, d in zip(leaves, along)))).item()
                         for s in (h, -h))
        measured, expected = (ahead - behind) / (2 * h), sum((g * d).sum().item() for g, d in zip(gradients, along))
        rounding = 4 * torch.finfo(torch.float32).eps * (abs(ahead) + abs(behind)) / (2 * h)
        sizes.append(sum(g.square().sum().item() for g in gradients) ** 0.5)
        if abs(measured - expected) > 0.1 * sizes[-1] + rounding:
            raise Wrong(f"moving the logits a little changes the value by {measured:.3g} per unit, but the gradient "
                        f"says {expected:.3g}: a detach(), no_grad(), .item() or NumPy on the way hides a part of it")
    if not any(sizes):
        raise Wrong("it has no gradient anywhere, so it cannot teach the network: look for argmax, round, a "
                    "comparison (>, ==) or detach() between step.logits and the value")


def check_repeatable(term: Term) -> None:
    step, fresh = example_step(), example_step()
    first = value_of(term, step).item()
    for name in ("image", "labels", "extent", "logits", "moved_logits"):
        if not torch.equal(getattr(step, name), getattr(fresh, name)):
            raise Wrong(f"it changes step.{name}, which the other terms need as it was: work on a copy")
    if (second := value_of(term, step).item()) != first:
        raise Wrong(f"asked twice about the same step it says {first:.6g}, then {second:.6g}: draw no random numbers, "
                    "keep nothing from one call to the next")


def check_no_gradient(term: Term, region: Callable[[Step], Tensor], name: str) -> None:
    step = example_step()
    mask = region(step).expand(step.logits.shape)
    on_slice, on_moved = gradients_of(term, step)
    if reached := int((on_slice[mask] != 0).sum() + (on_moved[step.move(mask)] != 0).sum()):
        raise Wrong(f'logits must not matter where "{name}" holds, but {reached} of {int(mask.sum())} have a gradient')


def check_unchanged(term: Term, change: Callable[[Step], Step], when: str) -> None:
    step = example_step()
    step = with_logits(step, moved_logits=step.logits.flip(1), move=Move(flip=False, quarter_turns=0))  # move alike
    before, after = value_of(term, step, when).item(), value_of(term, change(step), when).item()
    if abs(after - before) > 1e-4 * (abs(before) + abs(after)) + 1e-7:
        raise Wrong(f"its value goes from {before:.6g} to {after:.6g} {when}"
                    + (": take means, not sums" if "batch" in when else ""))
