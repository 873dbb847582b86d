"""What the commands `table1` and `train` do: `procedure.run`, or one model of it, in a folder where it can go on."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from tqdm.auto import tqdm

from pointseg import procedure
from pointseg.datasets.manifest import CENTROIDS, Case
from pointseg.datasets.split import Split, names_of, prepare_split, split_without_flaws
from pointseg.network import device, mixed_precision, set_mixed_precision
from pointseg.points import BEARMAN, Seconds, draw_labels, draw_points, draw_rivals, is_checked
from pointseg.predict import Model
from pointseg.preprocess import Scans
from pointseg.procedure import full_makes, supervised, terms_named, weak_makes
from pointseg.profiles import Profile
from pointseg.report.scores import pooled, score_case
from pointseg.report.table import Table, answers_of
from pointseg.report.watershed import grown
from pointseg.runs.checkpoint import Checkpoints
from pointseg.runs.identity import identity_of
from pointseg.runs.models import save_model
from pointseg.runs.parallel import Together, check_equal_parts
from pointseg.runs.processes import from_main, side_by_side, world_size
from pointseg.runs.run import Run, begin
from pointseg.runs.volumes import hash_of_case, prepare_into
from pointseg.runs.weights import read_imagenet
from pointseg.scans.files import hash_of
from pointseg.train import History
from pointseg.volume import ScanError


@dataclass(frozen=True)
class Machine:
    """What a run may use, which does not change its result."""

    cache: Path  # folder for prepared scans
    workers: int = 0  # processes that make batches; 0: the training's own
    at_once: int = 1  # models trained side by side
    tensorboard: bool = False  # write for it, too


@dataclass(frozen=True)
class Plan:
    """What a run is asked to do."""

    cases: tuple[Case, ...]
    profile: Profile
    seed: int
    machine: Machine
    terms: str = ""  # letters; "" for the profile's
    published: bool = False  # split as the sources do, not by the seed
    imagenet: Path | None = None  # a file of first weights, where not torch.hub's
    labels: str = "points"  # or slices, whole scans, masks: see `points.draw_labels`
    validation_masks: bool = False  # choose by full masks of the validation scans, as the thesis did
    seconds: Seconds = BEARMAN  # what labels cost
    rounds: int = 1  # of pseudo masks
    two_classes: bool = False  # cases without levels will do

    @cached_property
    def split(self) -> Split:
        return split_without_flaws(self.cases, self.seed, self.published, self.two_classes)

    @property
    def letters(self) -> str:
        return self.terms or self.profile.terms

    @property
    def loss_terms(self) -> procedure.Terms:
        return terms_named(self.letters, self.profile)

    @property
    def full_profile(self) -> Profile:
        """With first weights, which are read when they are needed."""
        return replace(self.profile, first_weights=partial(read_imagenet, self.imagenet))

    @property
    def identity(self) -> dict:
        """All that a run's result depends on: its arguments, its data, its code and its libraries."""
        cases = [c for part in (self.split.train, self.split.validation, self.split.test) for c in part]
        return {"profile": asdict(self.profile) | {"first_weights": self.imagenet and hash_of(self.imagenet)},
                "seed": self.seed, "terms": self.letters, "published split": self.published, "labels": self.labels,
                "validation masks": self.validation_masks, "seconds": asdict(self.seconds), "rounds": self.rounds,
                "split": names_of(self.split), "data": {case.name: hash_of_case(case) for case in cases},
                "device": device().type, "mixed precision": mixed_precision(),
                **identity_of("procedure", "runs.volumes", "report.scores")}

    def prepare(self) -> Scans:
        """Of several processes the first does it, and all read the files."""
        return from_main(lambda: prepare_split(self.split, self.profile, prepare_into(self.machine.cache)))

    def run_in(self, folder: Path, models: Path) -> Run:
        watch = partial(Together if world_size() > 1 else Checkpoints, workers=self.machine.workers,
                        tensorboard=self.machine.tensorboard)
        about = {"split": names_of(self.split), "profile": self.profile.name, "seed": self.seed}
        return Run(folder, models, about, watch)

    def labelled(self, scans: Scans) -> Scans:
        """What is known of the training and validation scans."""
        labelled = draw_labels(scans, self.labels, self.seed, self.seconds)
        return replace(labelled, validation=scans.validation) if self.validation_masks else labelled

    def rivals(self, scans: Scans) -> dict[str, Scans]:
        return draw_rivals(scans, self.seed, self.seconds)

    def independent(self, scans: Scans) -> dict[str, Callable[..., tuple[Model, History]]]:
        """What trains each model that waits for no other, by its name."""
        makes = weak_makes(self.labelled(scans), self.full_profile, self.seed, self.loss_terms)
        for arm, known in supervised(scans, self.seed, self.rivals(scans)).items():
            makes |= full_makes(arm, known, self.full_profile, self.seed)
        return makes


def run(plan: Plan, out: Path, data: str = "", restart: bool = False) -> Table:
    """The whole procedure, its models and all that it takes to go on in `out`.   restart: begin anew there."""
    print(", ".join(f"{len(part)} {name}" for name, part in names_of(plan.split).items()) + " scans")
    with begin(out / "training", lambda: {"command": "table1"} | plan.identity, restart):
        keep = plan.run_in(out / "training", out)
        scans = plan.prepare()
        by_name = {scan.name: scan for scan in scans.test}
        tested = [c for c in plan.split.test if c.mask_extent != CENTROIDS and is_checked(by_name[c.name])]
        if not tested:
            raise ScanError("found neither a mask among the test scans, but of centroids, nor places that chance has "
                            "chosen, expected some to score by; add scans with masks, or train and evaluate a model")
        if plan.machine.at_once > 1 and (waiting := [n for n in plan.independent(scans) if not keep.is_trained(n)]):
            side_by_side(partial(_train_alone, plan, out, mixed_precision()), waiting, plan.machine.at_once)
        outcome = procedure.run(scans, plan.full_profile, plan.seed, plan.loss_terms, plan.labelled(scans), keep,
                                plan.rounds, plan.rivals(scans))
        for arm in {"result", "reference"} & outcome.models.keys():
            save_model(out / f"{arm}.pt", outcome.models[arm], **keep.about)
        points = {p.name: p for p in draw_points([by_name[c.name] for c in tested], plan.seed, to_choose=True)}
        answers = answers_of(outcome)
        if all(by_name[c.name].mask is not None for c in tested):
            answers["watershed"] = lambda scan: grown(points[scan.name], scan)
        asked = ((answers, [c for c in plan.split.test if is_checked(by_name[c.name])]),
                 ({"pseudo_mask_train": answers["pseudo_mask"]}, [c for c in plan.split.train if c.mask]))
        prepare, scores = outcome.models["result"].prepare, {}
        for functions, cases in asked:
            scores |= pooled({case.name: keep(f"scores/{case.name}", partial(score_case, functions, prepare, case))
                              for case in tqdm(cases, "scoring", unit="scan")})
        return Table(outcome, scores, names_of(plan.split), points[tested[0].name], keep.seconds, plan.seed,
                     plan.profile.name, plan.letters, data, plan.labels, plan.seconds)


def _train_alone(plan: Plan, out: Path, mixed: bool, name: str) -> None:
    """One of the independent models, in a process of its own."""
    set_mixed_precision(mixed)
    plan.run_in(out / "training", out)(name, plan.independent(plan.prepare())[name])


def train_one(plan: Plan, axis: str, path: Path, restart: bool = False) -> History:
    """One model along one axis, as a weak one from points, else as the reference, on the split that `run` would use,
    into `path`.

    PATH-training beside it holds all that it takes to go on after an end at any moment.
    """
    folder, weak = path.with_name(f"{path.stem}-training"), plan.labels == "points"
    check_equal_parts((plan.profile.weak if weak else plan.profile.full).batch)
    with begin(folder, lambda: {"command": "train", "axis": axis} | plan.identity, restart):
        labelled = plan.labelled(plan.prepare())
        make = (weak_makes(labelled, plan.full_profile, plan.seed, plan.loss_terms)[axis] if weak else
                full_makes("full", labelled, plan.full_profile, plan.seed)[f"full_{axis}"])
        return plan.run_in(folder, path.parent).trained("", path, make)[1]
