"""The command line: pointseg table1, train, evaluate, segment, import, export."""

import argparse
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from pointseg import __version__
from pointseg.datasets.importers import NAMES
from pointseg.runs.surroundings import close_bars, processes_of_torchrun, steady_streams
from pointseg.volume import ScanError


def main(arguments: list[str] | None = None) -> int:
    """Run a command.   -> exit status: 0 done, 1 bad input (a line on stderr says so), 2 bad usage, 130 interrupted."""
    steady_streams()
    options = parser().parse_args(arguments)

    def said(text: str, status: int = 1) -> int:
        close_bars()
        print(f"pointseg {options.command}: {text}", file=sys.stderr)
        return status

    try:
        if processes_of_torchrun() > 1 and options.run is not train:
            raise ScanError("was started by torchrun, expected train, which several processes can share; start it "
                            "without, or unset WORLD_SIZE" + (", and see --at-once" if options.run is table1 else ""))
        options.run(options)
        sys.stdout.flush()
    except (ScanError, FloatingPointError) as error:  # bad input, or a loss that is no number
        return said(str(error))
    except (RuntimeError, MemoryError) as error:
        gpu = type(error).__name__ == "OutOfMemoryError"  # torch's, which would take seconds to import
        if not (gpu or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)):  # torch's, of CPUs
            raise
        remedy = "train with a smaller --batch" if options.run in (table1, train) else "crop the scans"
        return said(f"the {'GPU' if gpu else 'machine'} is out of memory, expected room for the work; {remedy}, or "
                    "take a larger one")
    except OSError as error:  # a name too long, no right to look there, too many open files: the machine's word
        where = f"{error.filename}: " if error.filename else ""
        return said(str(ScanError(f"{where}cannot be used ({error.strerror or error}), expected a file or folder that "
                                  "this machine lets one use; check its name, its permissions and the space left")))
    except KeyboardInterrupt:
        return said("interrupted", 130)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("pointseg", description="Segment the lumbar vertebrae L1..L5 in CT and MR, taught by "
                                  "points instead of full masks.")
    top.add_argument("--version", action="version", version=f"pointseg {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function, summary: str, description: str) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=summary, description=description)
        p.register("type", Path, a_path)
        p.set_defaults(run=function)
        return p

    p = command("table1", table1, "the whole procedure: points, weak models, pseudo masks, result, reference",
                "Run the whole procedure and print the thesis's Table 1 beside its own: the result, from labels that "
                "are drawn from the masks, the reference, from all masks, and their rivals, from as many masks as the "
                "same time buys. Without --data it runs on synthetic scans, which it writes to OUT/scans. OUT gets "
                "table1.json, figures and the models: result.pt and reference.pt hold three networks, one an axis. "
                "Broken off at any moment and started again with the same arguments, it goes on where it was.")
    data_options(p, required=False)
    p.add_argument("--labels", choices=("points", "slices", "masks"), default="points", help="what the result learns "
                   "from: points on every sagittal slice (default), masks of as many slices as take the same time, or "
                   "all masks, with their unlabelled voxels")
    training_options(p)
    p.add_argument("--rounds", type=at_least(1), default=1, metavar="N", help="rounds of pseudo masks: in each after "
                   "the first, three models learn from the answers of the three before (default 1)")
    p.add_argument("--seeds", type=at_least(1), default=1, metavar="N",
                   help="repeat with N seeds, from --seed on, and report means and intervals; each in a folder of OUT "
                   "(default 1)")
    p.add_argument("--at-once", type=at_least(1), metavar="N", help="models trained side by side, where they do not "
                   "wait for each other (default: the number of GPUs, or 1)")
    p.add_argument("--scans", type=at_least(3), default=36,
                   help="number of synthetic scans, without --data (default 36)")
    p.add_argument("--out", type=Path, default=Path("out/table1"),
                   help="folder for everything that is written (default out/table1)")

    p = command("train", train, "train one model along one axis", "Train one model along one axis on the training "
                "cases of a dataset folder, from points drawn from the masks or from the masks themselves. Broken off "
                "at any moment and started again with the same arguments, it goes on where it was. Under torchrun "
                "each of several processes takes an equal part of a batch, of which on CPUs batch norm sees no more.")
    data_options(p)
    p.add_argument("--axis", choices=("transverse", "coronal", "sagittal"), default="sagittal",
                   help="cut the scans along this axis (default sagittal); transverse models know 2 classes, others 6")
    p.add_argument("--labels", choices=("points", "slices", "masks"), default="points", help="what the model learns "
                   "from: points (default), masks of as many slices as take the same time, or all masks")
    training_options(p)
    p.add_argument("-o", "--output", type=Path, default=Path("out/model.pt"),
                   help="the model to write (default out/model.pt); what it takes to go on lies in MODEL-training")

    p = command("evaluate", evaluate, "score a saved model on a dataset folder", "Score a saved model on the cases of "
                "a dataset folder: Dice_wi in the scans' geometry and on the prepared grid; per class, source, case.")
    p.add_argument("model", type=Path, metavar="MODEL", help="a model that table1 or train wrote")
    data_options(p)
    p.add_argument("--split", choices=("all", "test"), default="all",
                   help="all cases (the default), or those that the model's own split kept for testing")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the scores to this file as well")

    p = command("import", import_dataset, "a public raw dataset to a dataset folder", "Convert a public raw dataset, "
                "laid out as it is published, to a dataset folder (a manifest.csv beside NIfTI files). What OUT_DIR "
                "holds already stays, but for cases of the same source and name. What is left out is named, with the "
                "reason. data/README.md says where each dataset is found, and what it is good for.")
    import_options(p)

    p = command("export", export, "simulated clicks to files, to be looked at", "Draw clicks from the masks of a "
                "dataset folder, as an expert might set them: three in each vertebra and five in the background of "
                "each sagittal slice. A file a scan, to be looked at in 3D Slicer or napari, or to be read by import "
                "points.")
    export_options(p)

    p = command("segment", segment, "segment scans", "Segment scans (NIfTI, MHA, NRRD, DICOM). A mask has its scan's "
                "own geometry and the values 0 background, 1..5 = L1..L5; beside it lie a picture in three planes and "
                "a record with volumes and warnings. Several scans go into a folder, which gets a summary.csv as well; "
                "started again, only what is missing is done. Exit status 1 says that a scan failed.")
    segment_options(p)
    return top


def import_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", choices=(*NAMES, "points"), metavar="NAME", help=", ".join(NAMES[:-1]) + "; or folder, for "
                   "any other; or points, for scans of your own with clicks: see the options below")
    p.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="RAW_DIR, the folder that the dataset was "
                   "unpacked into, and OUT_DIR, the dataset folder to write or to add to; of points, files of clicks")
    g = p.add_argument_group("of points alone", "Clicks are read from our CSV, 3D Slicer's .mrk.json and .fcsv, "
                             "napari's CSV and VerSe's centroids; a file's name begins with that of its scan.")
    g.add_argument("--scans", type=Path, metavar="DIR", help="where the scans are")
    g.add_argument("-o", "--output", type=Path, metavar="OUT_DIR", help="dataset folder to write or to add to")
    p = p.add_argument_group("of folder, and the last two of points")
    p.add_argument("--labels", nargs="+", metavar="VALUE=NAME", help="what the masks' values mean: C1..C7, T1..T13, "
                   "L1..L6, S1, background, unlabelled, or vertebra where levels are not known; such as 1=L1 2=L2")
    p.add_argument("--images", metavar="PATTERN", help="images below RAW_DIR, with one * for the case (default "
                   "images/*)")
    p.add_argument("--masks", metavar="PATTERN", help="masks, where * is the same as in the image (default masks/*), "
                   "such as masks/*_seg.nii.gz or */mask.nii.gz")
    p.add_argument("--modality", choices=("CT", "MR"), help="told by the intensities where not given")
    p.add_argument("--mask-extent", choices=("bodies", "whole"), help="what masks cover of a vertebra (default whole)")
    p.add_argument("--source", metavar="NAME", help="what to call the dataset (default folder, or clicked)")
    p.add_argument("--patient", metavar="REGEX", help="its first group, in the case's name, is the "
                   "patient; without it each case is one")


def export_options(p: argparse.ArgumentParser) -> None:
    data_options(p)
    p.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    p.add_argument("--format", default=".mrk.json", metavar="ENDING", help=".csv, .mrk.json (default), .fcsv or .json")
    p.add_argument("--seed", type=at_least(0), default=0, help="of the draw (default 0)")
    p.add_argument("--towards-middle", type=at_least(0.0, 100.0), default=0.0, metavar="POWER", help="clicks as "
                   "likely as their depth in the vertebra to this power (default 0: anywhere in it)")
    p.add_argument("--jitter-mm", type=at_least(0.0, 100.0), default=0.0, metavar="MM",
                   help="standard deviation of where a click lands")
    p.add_argument("--wrong-levels", type=at_least(0.0, 1.0), default=0.0, metavar="SHARE",
                   help="of clicks that get the level above or below")


def segment_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("scan", type=Path, nargs="+", metavar="SCAN",
                   help="a scan: a file or a DICOM folder; or a folder of scans; or a dataset folder")
    p.add_argument("--model", type=Path, default=Path("out/table1/result.pt"), help="a model that table1 or train "
                   "wrote (default out/table1/result.pt)")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="MASK",
                   help="mask to write: .nii.gz, .nii, .mha or .nrrd; or a folder, for any number of scans")
    p.add_argument("--modality", choices=("CT", "MR"), default="", help="where not given: from the DICOM header, else "
                   "told by the intensities")
    p.add_argument("--verse", action="store_true", help="write L1..L5 as 20..24, VerSe's numbers")
    p.add_argument("--series", default="", metavar="UID", help="SeriesInstanceUID, where a DICOM folder holds several")
    p.add_argument("--jobs", type=at_least(1), default=1, metavar="N", help="scans at a time, each in a process, "
                   "at most one a core (default 1)")


def data_options(p: argparse.ArgumentParser, required: bool = True) -> None:
    p.add_argument("--data", type=Path, metavar="DIR", required=required,
                   help="dataset folder: a manifest.csv beside scans and masks")
    p.add_argument("--source", nargs="+", action="extend", default=[], metavar="NAME",
                   help="only these sources of the manifest")


def training_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--profile", choices=("classroom", "lesson", "thesis"), default="classroom",
                   help="classroom (default): two CPU cores, minutes; lesson: the notebooks', coarser and shorter; "
                   "thesis: a CUDA GPU, hours")
    p.add_argument("--terms", help="loss terms of the models that learn from points: P point, C consistency, E extent, "
                   "S separation (default: the profile's, classroom P, thesis PCES)")
    p.add_argument("--validation", choices=("labels", "masks"), default="labels", help="what chooses a model's best "
                   "round and all else that is chosen: labels of validation scans, of the kind that trains (default), "
                   "or their full masks, as in the thesis")
    p.add_argument("--seconds", nargs=3, type=positive, metavar=("MASK", "POINTS", "FURTHER"), help="what an expert "
                   "takes to label an image: with a mask, with a point a class, for each further point (default: "
                   "239.7 22.1 0.9, of photographs, Bearman et al. 2016)")
    p.add_argument("--imagenet", metavar="FILE", help="thesis profile: VGG16's ImageNet weights, or none to train from "
                   "scratch; where not given, torch.hub's download")
    p.add_argument("--batch", type=at_least(1), metavar="N", help="slices a step, of all processes together (default: "
                   "the profile's)")
    p.add_argument("--seed", type=at_least(0), default=0,
                   help="for the split, the points, the first weights and the order (default 0)")
    p.add_argument("--published-split", action="store_true", help="split as the sources do, where the manifest's "
                   "column \"part\" says so, not 4/6, 1/6, 1/6 of the patients")
    p.add_argument("--restart", action="store_true", help="begin anew, and throw away what an earlier run has left")
    p = p.add_argument_group("the machine", "What a run may use. Only --precision changes more than rounding.")
    p.add_argument("--cache", type=Path, default=Path("out/cache"), metavar="DIR", help="folder of prepared scans, "
                   "which all runs and processes share and which may be deleted between them (default out/cache)")
    p.add_argument("--workers", type=at_least(0), metavar="N", help="processes that make batches, at most one a core "
                   "(default: 0, which means the training itself; with a GPU 4)")
    p.add_argument("--precision", choices=("mixed", "float32"), default="mixed", help="mixed (default): bfloat16 where "
                   "the hardware has it")
    p.add_argument("--tensorboard", action="store_true", help="write what history.csv and images/ show for TensorBoard "
                   "as well, which is a package of its own, into tensorboard/ beside them")


def chosen_profile(options: argparse.Namespace):
    from pointseg.profiles import PROFILES

    profile = PROFILES[options.profile]
    if options.batch:
        profile = replace(profile, weak=replace(profile.weak, batch=options.batch),
                          full=replace(profile.full, batch=options.batch))
    if options.imagenet is None:
        return profile
    if not profile.imagenet:
        raise ScanError(f"--imagenet: the {profile.name} profile is narrower than VGG16 and starts from scratch; "
                        "leave it out, or take --profile thesis")
    if options.imagenet != "none" and not Path(options.imagenet).is_file():
        from pointseg.scans.files import found_at

        raise ScanError(f"{options.imagenet}: {found_at(options.imagenet, 'file')}, expected VGG16's "
                        "ImageNet weights; check --imagenet")
    return replace(profile, imagenet=options.imagenet != "none")


def chosen_plan(options: argparse.Namespace, folder: Path, **more):
    """What to run, on the cases of a dataset folder; wrong options are refused before any work."""
    import torch

    from pointseg.datasets.manifest import read_manifest
    from pointseg.network import set_mixed_precision
    from pointseg.points import Seconds
    from pointseg.procedure import terms_named
    from pointseg.runs.experiment import Machine, Plan
    from pointseg.runs.run import remove_leftovers
    from pointseg.scans.files import check_folder

    cases, profile = read_manifest(folder, options.source), chosen_profile(options)
    terms_named(options.terms or profile.terms, profile)
    if options.tensorboard and not find_spec("tensorboard"):
        raise ScanError("--tensorboard: its package is not installed; pip install tensorboard, or leave it out and see "
                        "history.csv and images/")
    check_folder(options.cache)
    remove_leftovers(options.cache, older_than_s=3600)  # others may be writing there
    set_mixed_precision(options.precision == "mixed")
    gpus = torch.cuda.device_count()
    cores = os.cpu_count() or 1
    workers = min(options.workers, cores) if options.workers is not None else min(4, cores - 1) if gpus else 0
    machine = Machine(options.cache, workers, getattr(options, "at_once", None) or max(1, gpus), options.tensorboard)
    imagenet = Path(options.imagenet) if profile.imagenet and options.imagenet else None
    return Plan(tuple(cases), profile, options.seed, machine, options.terms or "", options.published_split, imagenet,
                options.labels, options.validation == "masks", Seconds(*options.seconds or ()),
                getattr(options, "rounds", 1), **more)


def at_least(least: int | float, most: float = 2**31 - 1):
    """What reads a number of the kind of `least`.   most: of torch's and NumPy's seeds and sizes"""
    def parse(text: str) -> int | float:
        if not least <= (value := type(least)(text)) <= most:
            raise argparse.ArgumentTypeError(f"{value} is fewer than {least}" if value < least else
                                             f"{value} is not one of {least} to {most}")
        return value
    parse.__name__ = "number"
    return parse


def a_path(text: str) -> Path:
    if not text:  # of a shell's variable that is not set; Path("") is the folder that one works in
        raise argparse.ArgumentTypeError("is empty, expected the name of a file or folder")
    return Path(text)


def positive(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is no time")
    return value


positive.__name__ = "number"  # in argparse's messages


# torch and numba take seconds to load: the modules that need them are imported by the command that runs.


def table1(options: argparse.Namespace) -> None:
    from pointseg.datasets.phantom import write_phantoms
    from pointseg.report.table import Repeated, write_table
    from pointseg.runs.experiment import run
    from pointseg.scans.files import check_folder, write_json

    check_folder(options.out)
    folder = options.data
    if folder is None:
        if options.source:
            raise ScanError("--source names sources of a dataset folder; give --data as well")
        folder = write_phantoms(options.out / "scans", options.scans, options.seed)
    plan = chosen_plan(options, folder)
    name = "synthetic" if options.data is None else " ".join(sorted({c.source for c in plan.cases if c.names_levels}))
    tables = []
    for seed in range(options.seed, options.seed + options.seeds):
        out = options.out if options.seeds == 1 else options.out / f"seed{seed}"
        table = run(replace(plan, seed=seed), out, name, options.restart)
        write_table(table, out)
        of_three = [name for name in ("result.pt", "reference.pt") if (out / name).is_file()]  # the latter needs masks
        print(f"\n{table}\n\nwritten to {out}: table1.json, {', '.join(of_three)} and the models of each axis, "
              "stages.png, curves.png, per_class.png, confusion.png")
        tables.append(table)
    if options.seeds > 1:
        repeated = Repeated(tables)
        write_json(options.out / "table1.json", repeated.as_dict())
        print(f"\n{repeated}\n\nwritten to {options.out}: table1.json")


def train(options: argparse.Namespace) -> None:
    from pointseg.commands.scanlist import inputs_of, refuse_overwriting
    from pointseg.runs.experiment import train_one
    from pointseg.runs.parallel import together
    from pointseg.scans.files import check_file, check_folder

    with together():
        check_folder(options.output.parent)
        check_file(options.output)
        plan = chosen_plan(options, options.data, two_classes=options.axis == "transverse")
        weights = [plan.imagenet] if plan.imagenet else []
        refuse_overwriting([options.output], [*weights, *inputs_of(options.data, plan.cases)])
        history = train_one(plan, options.axis, options.output, options.restart)
        print(f"best validation Dice_wi {history.best_validation:.3f} after {history.best_step} steps; "
              f"written to {options.output}")


def evaluate(options: argparse.Namespace) -> None:
    from pointseg.commands.scanlist import inputs_of, refuse_overwriting
    from pointseg.datasets.manifest import read_manifest
    from pointseg.report.scores import evaluate_model, summary, text_of
    from pointseg.runs.models import cases_of_split, load_model, load_split
    from pointseg.scans.files import check_file, check_folder, some_of, write_json

    if options.json:
        check_folder(options.json.parent)
        check_file(options.json)
    model, split = load_model(options.model), load_split(options.model)
    cases = read_manifest(options.data, options.source)
    if options.json:
        refuse_overwriting([options.json], [options.model, *inputs_of(options.data, cases)])
    if options.split == "test":
        cases = cases_of_split(cases, split, "test")
    known = {name for part in ("train", "validation") for name in split.get(part, [])} & {c.name for c in cases}
    result = summary(evaluate_model(model, cases))
    if options.json:
        write_json(options.json, result)
    print(text_of(result))
    if known:
        print(f"\nnote: {len(known)} of these {len(cases)} cases trained or chose this model, so the score "
              "flatters it; --split test scores the others")
    if flawed := [c for c in cases if c.flaw]:
        print(f"\nnote: {len(flawed)} of these {len(cases)} cases have a known flaw: "
              + some_of([f"{c.name} ({c.flaw})" for c in flawed], "; "))


def import_dataset(options: argparse.Namespace) -> None:
    from pointseg.datasets.importers import importer
    from pointseg.datasets.importers.convert import convert

    if options.name == "points":
        import_points(options)
        return
    if len(options.paths) != 2 or options.scans or options.output:
        raise ScanError(f"import {options.name}: found {len(options.paths)} paths, expected RAW_DIR and OUT_DIR, and "
                        "neither --scans nor -o, which are for points")
    module, (raw, out) = importer(options.name), options.paths
    if options.name == "folder":
        module = module.Folder.of(options)
    elif given := [o for o in ("labels", "images", "masks", "source", "modality", "mask_extent", "patient")
                   if getattr(options, o)]:
        raise ScanError(f"--{given[0].replace('_', '-')}: is for import folder alone, since {options.name} has a "
                        "layout of its own; leave it out")
    report = convert(module, raw, out)
    print(f"{report}\nwritten to {out}: {module.SOURCE}/ and manifest.csv")


def import_points(options: argparse.Namespace) -> None:
    from pointseg.commands.scanlist import find_scans
    from pointseg.datasets.clicked import import_points

    if not options.scans or not options.output:
        raise ScanError("import points: found no --scans or no -o, expected the folder of the scans and the dataset "
                        "folder to write")
    if not options.scans.exists():
        raise ScanError(f"{options.scans}: no such folder, expected that of the scans; check --scans")
    scans = list(find_scans([options.scans], options.output))
    told = import_points(options.paths, scans, options.output, options.source or "clicked", options.patient or "")
    print("\n".join(told), f"\nwritten to {options.output}: {options.source or 'clicked'}/ and manifest.csv")


def export(options: argparse.Namespace) -> None:
    from pointseg.commands.scanlist import inputs_of, refuse_overwriting
    from pointseg.datasets.clicked import export_paths, export_points
    from pointseg.datasets.manifest import read_manifest
    from pointseg.points import Care
    from pointseg.scans.files import check_folder

    cases = read_manifest(options.data, options.source)
    paths = export_paths(cases, options.output, options.format)
    check_folder(options.output)
    refuse_overwriting(paths, inputs_of(options.data, cases))
    export_points(cases, paths, options.seed, Care(options.towards_middle, options.jitter_mm, options.wrong_levels))
    print(f"written to {options.output}: {len(paths)} files, {paths[0].name} and so on")


def segment(options: argparse.Namespace) -> None:
    from pointseg.commands import batch
    from pointseg.commands.scanlist import find_scans, masks_in, refuse_overwriting
    from pointseg.scans.files import WRITABLE, check_folder, some_of

    batch.cached_model(options.model)  # a wrong one is refused before anything else
    modality_of = find_scans(options.scan, options.output)
    scans = list(modality_of)
    settings = batch.Options(options.model, options.modality, options.series, options.verse, modality_of)
    if options.output.name.endswith(WRITABLE):
        if len(scans) > 1:
            raise ScanError(f"{options.output}: is one mask, but {len(scans)} scans are given "
                            f"({some_of([str(scan) for scan in scans])}); give a folder as -o")
        check_folder(options.output.parent)
        refuse_overwriting([options.output], [*scans, options.model])
        outcome = batch.segment_one(scans[0], options.output, settings)
        print(f"{batch.single(outcome)}\nwritten to {options.output} and {batch.picture_of(options.output)}")
        return
    check_is_folder(options.output)
    check_folder(options.output)
    masks = masks_in(options.output, scans)
    refuse_overwriting(masks, [*scans, options.model])
    outcomes = batch.run(scans, masks, settings, min(options.jobs, len(scans), os.cpu_count() or 1), options.output)
    counts = {status: sum(o.status == status for o in outcomes) for status in ("done", "already done", "failed")}
    print(f"{batch.table(outcomes)}\n\n{', '.join(f'{n} {status}' for status, n in counts.items())}; "
          f"written to {options.output}, with {batch.SUMMARY}")
    if counts["failed"]:
        raise ScanError(f"{counts['failed']} of {len(scans)} scans failed; see {options.output / batch.SUMMARY}")


def check_is_folder(path: Path) -> None:
    """Refuse what looks like a mask in a format that cannot be written, mask.txt say, and files."""
    from pointseg.scans.files import check_format

    if path.is_file() or (not path.is_dir() and path.suffix[1:].isalpha()):  # 2024.05 may be a folder to be
        check_format(path)
