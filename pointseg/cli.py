"""The command line: pointseg table1, train, evaluate, segment."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from pointseg.volume import CLASSES, ScanError


def main(arguments: list[str] | None = None) -> int:
    """Run a command.   -> exit status: 0 done, 1 bad input (a line on stderr says so), 2 bad usage, 130 interrupted."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ScanError, FloatingPointError) as error:  # bad input, or a loss that is no number
        print(f"pointseg {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"pointseg {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("pointseg", description="Segment the lumbar vertebrae L1..L5 in CT and MR, taught by "
                                  "points instead of full masks.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function, summary: str, description: str) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=summary, description=description)
        p.set_defaults(run=function)
        return p

    p = command("table1", table1, "the whole procedure: points, weak models, pseudo masks, result, reference",
                "Run the whole procedure and print the thesis's Table 1 beside its own. Without --data it runs on "
                "synthetic scans, which it writes to OUT/scans. OUT gets table1.json, figures and the five models.")
    data_options(p, required=False)
    training_options(p)
    p.add_argument("--scans", type=at_least(3), default=36,
                   help="number of synthetic scans, without --data (default 36)")
    p.add_argument("--out", type=Path, default=Path("out/table1"),
                   help="folder for everything that is written (default out/table1)")

    p = command("train", train, "train one model along one axis", "Train one model along one axis on the training "
                "cases of a dataset folder, from points drawn from the masks or from the masks themselves.")
    data_options(p)
    p.add_argument("--axis", choices=("transverse", "coronal", "sagittal"), default="sagittal",
                   help="cut the scans along this axis (default sagittal); transverse models know 2 classes, others 6")
    p.add_argument("--labels", choices=("points", "masks"), default="points",
                   help="what the model learns from (default points)")
    training_options(p)
    p.add_argument("-o", "--output", type=Path, default=Path("out/model.pt"),
                   help="the model to write (default out/model.pt)")

    p = command("evaluate", evaluate, "score a saved model on a dataset folder", "Score a saved model on the cases of "
                "a dataset folder: Dice_wi in the scans' geometry and on the prepared grid; per class, source, case.")
    p.add_argument("model", type=Path, metavar="MODEL", help="a model that table1 or train wrote")
    data_options(p)
    p.add_argument("--split", choices=("all", "test"), default="all",
                   help="all cases (the default), or those that the model's own split kept for testing")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the scores to this file as well")

    p = command("segment", segment, "segment one scan",
                "Segment one scan (NIfTI, MHA, NRRD, or a folder with one DICOM series). The mask has the scan's own "
                "geometry and the values 0 background, 1..5 = L1..L5; a picture of it is written beside it.")
    p.add_argument("scan", type=Path, metavar="SCAN", help="the scan: a file or a DICOM folder")
    p.add_argument("--model", type=Path, required=True, help="a model that table1 or train wrote")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="MASK",
                   help="mask to write: .nii.gz, .mha or .nrrd")
    p.add_argument("--modality", choices=("CT", "MR"), default="", help="told by the intensities where not given")
    return top


def data_options(p: argparse.ArgumentParser, required: bool = True) -> None:
    p.add_argument("--data", type=Path, metavar="DIR", required=required,
                   help="dataset folder: a manifest.csv beside scans and masks")
    p.add_argument("--source", nargs="+", action="extend", default=[], metavar="NAME",
                   help="only these sources of the manifest")


def training_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--profile", choices=("classroom", "thesis"), default="classroom",
                   help="classroom (default): two CPU cores, minutes; thesis: a CUDA GPU, hours")
    p.add_argument("--terms", help="loss terms of the models that learn from points: P point, C consistency, E extent, "
                   "S separation (default: the profile's, classroom P, thesis PCES)")
    p.add_argument("--imagenet", metavar="FILE", help="thesis profile: VGG16's ImageNet weights, or none to train from "
                   "scratch; where not given, torch.hub's download")
    p.add_argument("--seed", type=at_least(0), default=0,
                   help="for the split, the points, the first weights and the order (default 0)")


def chosen_profile(options: argparse.Namespace):
    from pointseg.profiles import PROFILES

    profile = PROFILES[options.profile]
    if options.imagenet is None:
        return profile
    if not profile.imagenet:
        raise ScanError(f"--imagenet: the {profile.name} profile is narrower than VGG16 and starts from scratch; "
                        "leave it out, or take --profile thesis")
    if options.imagenet != "none" and not Path(options.imagenet).is_file():
        raise ScanError(f"{options.imagenet}: no such file, expected VGG16's ImageNet weights; check --imagenet")
    return replace(profile, imagenet=options.imagenet != "none", imagenet_file=Path(options.imagenet))


def at_least(least: int):
    def parse(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is fewer than {least}")
        return value
    parse.__name__ = "number"
    return parse


# torch and numba take seconds to load: the modules that need them are imported by the command that runs.


def table1(options: argparse.Namespace) -> None:
    from pointseg.datasets import read_manifest
    from pointseg.files import check_folder
    from pointseg.model import save_model
    from pointseg.phantom import write_phantoms
    from pointseg.procedure import run, terms_named
    from pointseg.report import write_table

    profile, folder = chosen_profile(options), options.data
    terms_named(profile.terms if options.terms is None else options.terms, profile)  # refuse a wrong one at once
    check_folder(options.out)
    if folder is None:
        if options.source:
            raise ScanError("--source names sources of a dataset folder; give --data as well")
        folder = write_phantoms(options.out / "scans", options.scans, options.seed)
    cases = read_manifest(folder, options.source)
    name = "synthetic" if options.data is None else " ".join(sorted({c.source for c in cases}))
    table = run(cases, profile, options.seed, options.terms, name,
                lambda model_name, model: save_model(options.out / f"{model_name}.pt", model))
    write_table(table, options.out)
    print(f"\n{table}\n\nwritten to {options.out}: table1.json, {', '.join(f'{m}.pt' for m in table.histories)}, "
          "stages.png, curves.png, per_class.png, confusion.png")


def train(options: argparse.Namespace) -> None:
    from pointseg.datasets import read_manifest
    from pointseg.files import check_folder
    from pointseg.model import save_model
    from pointseg.procedure import train_one

    check_folder(options.output.parent)
    cases = read_manifest(options.data, options.source)
    model, history = train_one(cases, options.axis, options.labels == "points", chosen_profile(options), options.seed,
                               options.terms)
    save_model(options.output, model)
    print(f"best validation Dice_wi {history.best_validation:.3f} after {history.best_step} steps; "
          f"written to {options.output}")


def evaluate(options: argparse.Namespace) -> None:
    from pointseg.datasets import read_manifest
    from pointseg.evaluate import cases_of_split, evaluate_model
    from pointseg.files import check_folder
    from pointseg.model import load_model
    from pointseg.report import write_json

    if options.json:
        check_folder(options.json.parent)
    model = load_model(options.model)
    cases = read_manifest(options.data, options.source)
    if options.split == "test":
        cases = cases_of_split(cases, model, "test")
    known = {name for part in ("train", "validation") for name in model.split[part]} & {c.name for c in cases}
    result = evaluate_model(model, cases)
    print(result)
    if known:
        print(f"\nnote: {len(known)} of these {len(cases)} cases trained or chose this model, so the score flatters "
              "it; --split test scores the others")
    if flawed := [c for c in cases if c.flaw]:
        print(f"\nnote: {len(flawed)} of these {len(cases)} cases have a known flaw: "
              + "; ".join(f"{c.name} ({c.flaw})" for c in flawed))
    if options.json:
        write_json(options.json, result.as_dict())


def segment(options: argparse.Namespace) -> None:
    from pointseg import plot
    from pointseg.files import check_folder, check_format
    from pointseg.model import load_model
    from pointseg.preprocess import told_modality
    from pointseg.volume import read_volume, write_mask

    check_format(options.output)
    check_folder(options.output.parent)
    if options.output.resolve() == options.scan.resolve():
        raise ScanError(f"{options.output}: is the scan itself, expected another name for the mask; change -o")
    model = load_model(options.model)
    if model.num_classes != len(CLASSES):
        raise ScanError(f"{options.model}: knows vertebrae but not their levels, expected a model of L1..L5; "
                        "take result.pt, reference.pt, sagittal.pt or coronal.pt")
    volume = read_volume(options.scan, modality=options.modality)
    labels = model.segment(model.prepare(volume), volume.image.shape)
    picture = options.output.with_name(options.output.name.removesuffix(".gz").rpartition(".")[0] + ".png")
    write_mask(options.output, labels, volume.geometry)
    plot.save(plot.three_planes(volume.image, labels, volume.spacing_mm, title=volume.name), picture)
    voxel_ml = volume.spacing_mm[0] * volume.spacing_mm[1] * volume.spacing_mm[2] / 1000
    print(f"read as {volume.modality or told_modality(volume.image) + ', told by its intensities'}")
    for k, name in enumerate(CLASSES[1:], start=1):
        print(f"{name:<4}{(labels == k).sum() * voxel_ml:8.1f} ml")
    print(f"written to {options.output} and {picture}")
