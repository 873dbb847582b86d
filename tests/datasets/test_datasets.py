"""Manifests are read whole or refused by name; the split keeps patients apart, whatever the order of the rows."""

import csv
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pointseg.datasets.manifest import Case, add_to_manifest, read_manifest, write_manifest
from pointseg.datasets.split import Split, largest_remainder, names_of, split_cases, split_without_flaws
from pointseg.runs.volumes import key_of
from pointseg.scans.files import write_image
from pointseg.scans.volumes import geometry_of, to_own_geometry, write_volume
from pointseg.volume import UNLABELLED, Geometry, ScanError, Volume

ROOT = Path(__file__).parents[2]


def case(source: str, number: int, patient: str | None = None) -> Case:
    name = f"{number:03d}"
    return Case(source, name, patient or f"p{name}", "MR", Path(f"{name}_img.nii"), Path(f"{name}_vert.nii"))


def cases_of(**sources: int) -> list[Case]:
    return [case(source, k) for source, count in sources.items() for k in range(count)]


def counts(split: Split) -> tuple[int, int, int]:
    return len(split.train), len(split.validation), len(split.test)


# --- split ---

@pytest.mark.parametrize("total, expected", [(30, [20, 5, 5]), (6, [4, 1, 1]), (37, [25, 6, 6]), (13, [9, 2, 2]),
                                             (5, [3, 1, 1]), (4, [3, 1, 0]), (3, [2, 1, 0]), (2, [2, 0, 0]),
                                             (1, [1, 0, 0]), (0, [0, 0, 0])])
def test_largest_remainder_by_hand(total, expected):
    """37: 24 4/6, 6 1/6, 6 1/6.  5: 3 2/6, 5/6, 5/6.  4: 2 4/6, 4/6, 4/6, a tie for two, so the first two."""
    assert largest_remainder(total, (4, 1, 1)) == expected


@pytest.mark.parametrize("sources, expected", [
    ({"a": 30}, (20, 5, 5)),
    ({"a": 3}, (1, 1, 1)),  # 2, 0, 1 by remainder, then validation takes one from training
    ({"a": 1, "b": 1, "c": 1}, (1, 1, 1)),
    ({"a": 2, "b": 2}, (2, 1, 1)),
    ({"a": 37, "b": 13, "c": 4, "d": 1}, (25 + 9 + 3 + 1, 6 + 2, 6 + 2 + 1)),
])
def test_split_counts_by_hand(sources, expected):
    assert counts(split_cases(cases_of(**sources))) == expected


def test_split_is_stratified():
    split = split_cases(cases_of(a=30, b=12), seed=3)
    assert Counter(c.source for c in split.train) == {"a": 20, "b": 8}
    assert Counter(c.source for c in split.validation) == Counter(c.source for c in split.test) == {"a": 5, "b": 2}


def random_cases(rng: random.Random) -> list[Case]:
    """Up to four sources, several cases a patient, and the same patient names in every source."""
    return [case(source, k, f"p{rng.randrange(8)}") for source in "abcd"[:rng.randint(1, 4)]
            for k in range(rng.randint(1, 20))]


def test_split_properties():
    rng = random.Random(0)
    tried = 0
    while tried < 200:
        cases = random_cases(rng)
        if len({(c.source, c.patient) for c in cases}) < 3:
            continue
        tried += 1
        split = split_cases(cases, seed=tried)
        parts = (split.train, split.validation, split.test)
        assert sorted(c.name for part in parts for c in part) == sorted(c.name for c in cases)  # each exactly once
        people = [{(c.source, c.patient) for c in part} for part in parts]
        assert sum(map(len, people)) == len(set.union(*people))  # nobody in two parts
        assert all(people)
        shuffled = rng.sample(cases, len(cases))
        assert split_cases(shuffled, seed=tried) == split


def test_same_name_in_two_sources_is_two_people():
    """One patient of each source, all called p: three people, so a split is possible."""
    cases = [case(source, 0, "p") for source in "abc"]
    assert counts(split_cases(cases)) == (1, 1, 1)


def test_seeds_differ_and_every_patient_gets_tested():
    cases = cases_of(a=12)
    tested = Counter(c.case for seed in range(60) for c in split_cases(cases, seed).test)
    assert len(tested) == 12 and max(tested.values()) < 30  # 10 each on average


def test_patients_with_clicks_alone_train(tmp_path):
    """Of six patients two have places that chance has chosen: one validates, one is tested, whatever the seed."""
    cases = []
    for c in cases_of(a=6):
        mm3 = "7.5" if int(c.case) < 2 else ""
        (tmp_path / c.case).write_text(f"level,x_mm,y_mm,z_mm,stands_for_mm3\nL1,1,1,1,\nL1,1,1,2,{mm3}\n")
        cases.append(replace(c, mask=None, points=tmp_path / c.case))
    for seed in range(6):
        split = split_cases(cases, seed)
        assert sorted(c.case for c in split.validation + split.test) == ["000", "001"] and len(split.test) == 1
    assert counts(split_cases(cases[:3])) == (1, 1, 1) and split_cases(cases[:3]).train == (cases[2],)
    assert counts(split_cases([*cases, *cases_of(b=6)])) == (8, 2, 2)


def test_source_splits_do_not_depend_on_each_other():
    def alone(split: Split) -> list[list[Case]]:
        return [[c for c in part if c.source == "a"] for part in (split.train, split.validation, split.test)]
    assert alone(split_cases(cases_of(a=9))) == alone(split_cases(cases_of(a=9, b=7)))


def test_split_is_the_same_in_another_process():
    """hash() of a text differs from run to run; the split must not."""
    code = ("import sys; sys.path.insert(0, 'tests/datasets'); from test_datasets import *\n"
            "print(*(c.name for c in split_cases(cases_of(a=8, b=5), 7).test))")
    runs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}).stdout
            for seed in ("1", "2")]
    assert runs[0] == runs[1] == " ".join(c.name for c in split_cases(cases_of(a=8, b=5), 7).test) + "\n"


def test_flawed_cases_are_left_out_and_named(capsys):
    cases = cases_of(a=7)
    split = split_without_flaws([replace(cases[0], flaw="L3 is missing"), *cases[1:]], seed=0)
    assert "a/000 (L3 is missing)" in capsys.readouterr().out
    assert sorted(c.name for part in names_of(split).values() for c in cases if c.name in part) == [
        c.name for c in cases[1:]]


def test_the_published_split_is_taken_on_demand():
    parts = ["train", "train", "test", "train", "validation", "train", "test"]
    cases = [replace(c, part=part) for c, part in zip(cases_of(a=7), parts, strict=True)]
    split = split_without_flaws(cases, 0, published=True)
    assert [[c.part for c in part] for part in (split.train, split.validation, split.test)] == [
        ["train"] * 4, ["validation"], ["test"] * 2]
    assert split_without_flaws(cases, 0) == split_cases(cases, 0)
    leaking = [replace(c, patient="one") for c in cases]
    for wrong, said in ((leaking, "patients in two parts"), (cases[:2], "no case in the published validation and test"),
                        ([replace(cases[0], part=""), *cases[1:]], "1 of 7 cases without")):
        with pytest.raises(ScanError, match=said):
            split_without_flaws(wrong, 0, published=True)


@pytest.mark.parametrize("cases, found", [([], 0), (cases_of(a=2), 2), ([case("a", k, "p") for k in range(9)], 1)])
def test_too_few_patients(cases, found):
    with pytest.raises(ScanError, match=f"found {found} patients.*at least 3"):
        split_cases(cases)


# --- manifest ---

@pytest.fixture
def folder(tmp_path) -> Path:
    """A dataset folder of three small scans."""
    cases = []
    for source, number in (("a", 1), ("a", 2), ("b", 1)):
        image = np.full((2, 3, 4), number, np.float32)
        mask = np.zeros((2, 3, 4), np.uint8)
        mask[1, 2, 3] = number
        image_path, mask_path = (tmp_path / source / f"{number}_{kind}.nii.gz" for kind in ("img", "vert"))
        geometry = Geometry.canonical(mask.shape, (3, 2, 1))
        write_volume(image_path, Volume(image, mask, (3, 2, 1), "", "MR", geometry), mask_path)
        cases.append(Case(source, str(number), f"patient {number}", "MR", image_path, mask_path, "vertebral bodies",
                          ("T12", "L1"), "cut, at the edge"))
    write_manifest(tmp_path, cases)
    return tmp_path


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "manifest.csv").read_text()
    assert old in text
    (folder / "manifest.csv").write_text(text.replace(old, new, 1))


def test_round_trip(folder):
    cases = read_manifest(folder)
    assert [c.name for c in cases] == ["a/1", "a/2", "b/1"]
    assert cases[0] == Case("a", "1", "patient 1", "MR", folder / "a" / "1_img.nii.gz", folder / "a" / "1_vert.nii.gz",
                            "vertebral bodies", ("T12", "L1"), "cut, at the edge")
    assert (folder / "manifest.csv").read_text().splitlines()[1] == (
        "a,1,patient 1,MR,a/1_img.nii.gz,a/1_vert.nii.gz,vertebral bodies,T12 L1,\"cut, at the edge\"")
    before = (folder / "manifest.csv").read_bytes()
    write_manifest(folder, cases)
    assert (folder / "manifest.csv").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b", "manifest.csv"]


def test_published_parts(folder):
    """A column that is there only where a source has one; the others read as before."""
    cases = read_manifest(folder)
    assert "part" not in (folder / "manifest.csv").read_text().splitlines()[0]
    parted = [replace(c, part=part) for c, part in zip(cases, ("train", "", "test"), strict=True)]
    write_manifest(folder, parted)
    assert read_manifest(folder) == parted
    assert (folder / "manifest.csv").read_text().splitlines()[0].endswith(",flaw,part")
    edit(folder, ",test", ",exam")
    with pytest.raises(ScanError, match="line 4: part is exam, expected train, validation, test or nothing"):
        read_manifest(folder)


def test_read_case(folder):
    volume = read_manifest(folder)[1].read()
    assert (volume.name, volume.modality, volume.spacing_mm) == ("a/2", "MR", (3, 2, 1))
    assert volume.image.max() == 2 and volume.mask[1, 2, 3] == 2 and volume.mask.sum() == 2


def test_choose_sources(folder):
    assert [c.name for c in read_manifest(folder, ["b"])] == ["b/1"]
    (folder / "a" / "1_img.nii.gz").unlink()
    assert len(read_manifest(folder, ["b"])) == 1  # a source that is not asked for need not be complete
    with pytest.raises(ScanError, match="no source c, x, expected one of a, b"):
        read_manifest(folder, ["x", "a", "c"])


def test_optional_columns_may_be_absent(folder):
    (folder / "manifest.csv").write_text("mask,image,patient,case,source\na/1_vert.nii.gz,a/1_img.nii.gz,p,1,a\n")
    assert read_manifest(folder) == [Case("a", "1", "p", "", folder / "a" / "1_img.nii.gz",
                                          folder / "a" / "1_vert.nii.gz")]


def test_spreadsheet_export(folder):
    """A byte order mark, CRLF, spaces around values."""
    text = (folder / "manifest.csv").read_text().replace("\n", "\r\n").replace("a,1,", "a, 1 ,", 1)
    expected = read_manifest(folder)
    (folder / "manifest.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_manifest(folder) == expected


@pytest.mark.parametrize("first", ["", "sep={}\r\n", '"sep={}"\r\n'])
@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_what_stands_between_values(folder, delimiter, first):
    """Spreadsheets write what a country is used to; what is added later stands between commas."""
    expected, path = read_manifest(folder), folder / "manifest.csv"
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        file.write(first.format(delimiter))
        csv.writer(file, delimiter=delimiter).writerows([[f" {name} " for name in rows[0]], *rows[1:]])
    assert read_manifest(folder) == expected
    add_to_manifest(folder, expected[:1])
    assert read_manifest(folder) == expected and path.read_text().startswith("source,case,")


@pytest.mark.parametrize(("old", "new"), [
    ("source,case,patient,modality,image", "Source,CASE,Patient,Modality,Image"), ("a/1_img", "a\\1_img"),
    ("a,2,", ",,,,,,,,\na,2,"), ("a,1,patient 1", "a, 1 ,\tpatient 1"), ("a,2,", "  \na,2,")])
def test_manifests_as_other_hands_write_them(folder, old, new):
    """Columns in capitals, Windows' paths, rows of nothing but commas, spaces."""
    expected = read_manifest(folder)
    edit(folder, old, new)
    assert read_manifest(folder) == expected
    add_to_manifest(folder, expected[:1])
    assert read_manifest(folder) == expected


def test_words_with_a_meaning_in_capitals(folder):
    case = read_manifest(folder)[0]
    write_manifest(folder, [replace(case, levels=("Vertebra",), mask_extent="Centroids")])
    assert read_manifest(folder) == [replace(case, levels=("vertebra",), mask_extent="centroids")]


def test_masks_as_segment_writes_them(folder):
    """0..5, where VerSe's numbers have L1..L5 = 20..24: a column may say so, and where it does not, the error does."""
    case = read_manifest(folder)[0]
    array = np.zeros((2, 3, 4), np.uint8)
    array[0, 0] = 0, 1, 5, UNLABELLED
    write_image(case.mask, to_own_geometry(array, Geometry.canonical(array.shape, (3, 2, 1))))
    with pytest.raises(ScanError, match=r"no voxel of L1\.\.L5 among its values 0\.\.1, 5, 255.*without --verse, say "
                                        "classes in a column scheme of the manifest.csv"):
        case.read()
    write_manifest(folder, [replace(case, scheme="classes")])
    (again,) = read_manifest(folder)
    assert again.scheme == "classes" and again.read().mask[0, 0].tolist() == [0, 1, 5, UNLABELLED]
    assert key_of(again, 2.0) != key_of(case, 2.0)
    edit(folder, ",classes", ",mine")
    with pytest.raises(ScanError, match="line 2: scheme is mine, expected verse .*, classes"):
        read_manifest(folder)


def test_missing_folder_and_manifest(tmp_path):
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(ScanError, match="x.csv: found a file, expected a dataset folder"):
        read_manifest(tmp_path / "x.csv")
    with pytest.raises(ScanError, match="nowhere: no such folder"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(ScanError, match=f"{tmp_path.name}: no manifest.csv"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("old, new, message", [
    ("source,case,patient", "source,case,person", "manifest.csv: found columns .*person.* missing patient;"),
    ("a,1,patient 1", "a,1,", "manifest.csv, line 2: patient is empty"),
    ("a,2,", "a,,", "manifest.csv, line 3: case is empty"),
    ("a,2,", "a,1,", "manifest.csv: found a/1 twice"),
    ("a/1_img.nii.gz", "/etc/1_img.nii.gz", "line 2: image is /etc/1_img.nii.gz, expected a path inside"),
    ("a/1_vert.nii.gz", "a/../../1_vert.nii.gz", r"line 2: mask is a/\.\./\.\./1_vert.nii.gz, expected a path inside"),
    ("a/1_img.nii.gz", r"C:\\data\\1_img.nii.gz", "line 2: image is C:.*, expected a path inside"),
    ("mask_extent", "mask", "found several columns mask, expected each once"),
    ("a,2,patient 2", "a,2,patient 2,MR", "line 3: found more values than columns, expected 9"),
    ("a,2,patient 2", 'a,2,"patient 2', "line 3: found ',' expected after"),  # the rest would be a patient's name
    ("a/2_img.nii.gz", "a/9_img.nii.gz", "9_img.nii.gz: no such file, but manifest.csv names it for a/2"),
    ("b/1_vert.nii.gz", "b/gone.nii.gz", "gone.nii.gz: no such file, but manifest.csv names it for b/1"),
    ("a,2,patient 2,MR", "a,2", "line 3: modality is a/2_vert.nii.gz"),  # two cells lost: the others slip to the left
])
def test_faults(folder, old, new, message):
    edit(folder, old, new)
    with pytest.raises(ScanError, match=message) as error:
        read_manifest(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content, message", [(b"", "found columns none"), (b"\xff\xfe\x00a", "cannot be read"),
                                              (b"source,case,patient,image,mask\n", "found no case")])
def test_manifest_without_content(tmp_path, content, message):
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(ScanError, match=f"manifest.csv: {message}"):
        read_manifest(tmp_path)


def test_case_without_a_lumbar_vertebra(folder):
    cases = read_manifest(folder)
    image = Volume(np.ones((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.uint8), (3, 2, 1), "", "",
                   Geometry.canonical((2, 3, 4), (3, 2, 1)))
    write_volume(cases[0].image, image, cases[0].mask)
    with pytest.raises(ScanError, match="1_vert.nii.gz: found no voxel of L1..L5.*remove a/1"):
        cases[0].read()


def test_a_case_may_hide_voxels_but_not_all(folder):
    """255 is unlabelled; a mask of nothing but that has nothing to teach either.  99 is a vertebra of unknown level."""
    case, array = read_manifest(folder)[0], np.zeros((2, 3, 4), np.uint8)
    image = to_own_geometry(array, Geometry.canonical(array.shape, (3, 2, 1)))
    for values, levels, expected in (([255, 20], ("L1",), [255, 1]), ([99, 0], ("vertebra",), [1, 0])):
        array[0, 0, :2] = values
        write_image(case.mask, to_own_geometry(array, geometry_of(image)))
        assert replace(case, levels=levels).read().mask[0, 0, :2].tolist() == expected
    for values, levels, said in ((255, ("L1",), "no voxel of L1..L5"), (99, ("L1",), "mask values 99, expected"),
                                 (20, ("vertebra",), "mask values 20, expected whole numbers 0, 99")):
        write_image(case.mask, to_own_geometry(np.full_like(array, values), geometry_of(image)))
        with pytest.raises(ScanError, match=said):
            replace(case, levels=levels).read()


def test_failed_write_keeps_the_old_manifest(folder):
    before = (folder / "manifest.csv").read_bytes()
    cases = read_manifest(folder)
    with pytest.raises(ScanError, match="b/1: found /elsewhere.nii.*expected paths inside"):
        write_manifest(folder, [*cases[:2], replace(cases[2], image=Path("/elsewhere.nii"))])
    assert (folder / "manifest.csv").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b", "manifest.csv"]


