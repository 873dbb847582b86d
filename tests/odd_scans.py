"""A good scan in seven forms, and a model whose mask tells whether all of it is in its place."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from pointseg import profiles
from pointseg.commands import main as cli
from pointseg.predict import Model
from pointseg.preprocess import prepare
from pointseg.runs.models import save_model
from pointseg.scans.volumes import read_volume

SHAPE, SPACING, ORIGIN = (16, 20, 24), (1.5, 2.0, 2.5), (-12.5, 40.25, 7.125)  # stored z y x; x y z
SECONDS = 10
TINY = dataclasses.replace(profiles.CLASSROOM, name="tiny", grid_mm=3.0, width=1 / 16, hidden=8)
TURN = sitk.VersorTransform((0.3, 0.1, 0.2), 0.2)
DIRECTION = np.reshape(TURN.GetMatrix(), (3, 3)) @ np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])  # oblique, sagittal


def values() -> np.ndarray:
    """A CT (z, y, x) as stored: air around smooth tissue with bright bone."""
    rng = np.random.default_rng(0)
    image = np.full(SHAPE, -1000, np.int16)
    image[2:-2, 3:-3, 3:-3] = rng.integers(-100, 200, (12, 14, 18))
    image[5:11, 6:14, 6:18:3] = rng.integers(400, 1200, (6, 8, 4))
    return image


def image_of(array: np.ndarray, spacing=SPACING, direction=DIRECTION) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(ORIGIN)
    image.SetDirection(np.ravel(direction).tolist())
    return image


def write_slices(folder: Path, array: np.ndarray, alter: Callable[[pydicom.Dataset, int], None] = lambda d, k: None,
                 modality: str = "CT") -> Path:
    """A classic DICOM series: a file a slice, named against their order."""
    folder.mkdir(exist_ok=True)
    series, study = generate_uid(entropy_srcs=["series"]), generate_uid(entropy_srcs=["study"])
    for k, plane in enumerate(array):
        d = pydicom.Dataset()
        d.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2" if modality == "CT" else "1.2.840.10008.5.1.4.1.1.4"
        d.SOPInstanceUID, d.SeriesInstanceUID, d.StudyInstanceUID = generate_uid(), series, study
        d.Modality, d.PatientID, d.PatientName, d.ImageType = modality, "p1", "One^Patient", ["ORIGINAL", "PRIMARY"]
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = *plane.shape, 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
        d.PixelSpacing, d.SliceThickness, d.InstanceNumber = [SPACING[1], SPACING[0]], SPACING[2], k + 1
        d.ImageOrientationPatient = [f"{c:.12f}" for c in DIRECTION[:, :2].T.ravel()]
        d.ImagePositionPatient = [f"{c:.9f}" for c in np.array(ORIGIN) + DIRECTION[:, 2] * SPACING[2] * k]
        d.RescaleSlope, d.RescaleIntercept = 1, -1000
        d.PixelData = (plane + 1000).astype(np.int16).tobytes()
        alter(d, k)
        if d.get("gone"):
            continue
        d.file_meta = pydicom.dataset.FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.save_as(folder / f"{99 - k}.dcm", enforce_file_format=True)
    return folder


def write_frames(path: Path, array: np.ndarray, modality: str = "MR") -> Path:
    image = image_of(array)
    image.SetMetaData("0008|0060", modality)
    sitk.WriteImage(image, str(path))
    return path


FORMS = {  # name -> how a good scan is written
    "nii": lambda folder: save(folder / "scan.nii"), "nii.gz": lambda folder: save(folder / "scan.nii.gz"),
    "mha": lambda folder: save(folder / "scan.mha"), "mhd": lambda folder: save(folder / "scan.mhd"),
    "mha, packed": lambda folder: save(folder / "scan.mha", packed=True),
    "nrrd": lambda folder: save(folder / "scan.nrrd", packed=True),
    "frames": lambda folder: write_frames(folder / "scan.dcm", values())}


def save(path: Path, array: np.ndarray | None = None, packed: bool = False, **options) -> Path:
    sitk.WriteImage(image_of(values() if array is None else array, **options), str(path), packed)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A random network whose classes are about equally frequent, so that a mask tells whether all is in its place."""
    folder = tmp_path_factory.mktemp("model")
    network = TINY.network(6, seed=0)
    scan = prepare(read_volume(save(folder / "scan.mha")), TINY.grid_mm)
    with torch.no_grad():
        network.skips["pool2"].weight *= 30
        model = Model(network, "sagittal", TINY.grid_mm, 192)
        logits = np.concatenate([crops for crops, _ in model.logits(scan)])
        network.skips["pool2"].bias -= torch.from_numpy(np.median(logits, axis=(0, 1, 3, 4)))
    save_model(folder / "random.pt", model)
    return folder / "random.pt"


@pytest.fixture(scope="module")
def good(model, tmp_path_factory) -> Callable[..., np.ndarray]:
    """The mask, as stored, of the good scan with these values."""
    folder, masks = tmp_path_factory.mktemp("good"), {}

    def mask_of(array: np.ndarray | None = None, modality: str = "CT") -> np.ndarray:
        array = values() if array is None else array
        key = (array.tobytes(), modality)
        if key not in masks:
            assert cli.main(["segment", str(save(folder / "scan.mha", array)), "--model", str(model), "-o",
                             str(folder / "mask.mha"), "--modality", modality]) == 0
            masks[key] = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "mask.mha")))
            assert np.sum(np.bincount(masks[key].ravel(), minlength=6) > 0.01 * masks[key].size) >= 3
        return masks[key]
    return mask_of


@dataclasses.dataclass
class Answer:
    status: int
    error: str  # the message, without "pointseg segment: "
    mask: sitk.Image | None
    notes: str


def segment(scan: Path, model: Path, folder: Path, capsys, *options: str) -> Answer:
    """Run the command, and check what holds for every file, good or bad."""
    capsys.readouterr()
    out = folder / "out"
    start = time.monotonic()
    status = cli.main(["segment", str(scan), "--model", str(model), "-o", str(out / "mask.mha"), *options])
    assert time.monotonic() - start < SECONDS
    said = capsys.readouterr()
    written = sorted(p.name for p in out.iterdir()) if out.exists() else []
    if status == 0:
        assert said.err == "" and written == ["mask.json", "mask.mha", "mask.png"]
        record = json.loads((out / "mask.json").read_text())
        answer = Answer(0, "", sitk.ReadImage(str(out / "mask.mha")), "; ".join(record["notes"]))
        array = sitk.GetArrayViewFromImage(answer.mask)
        assert array.dtype == np.uint8 and array.max() <= 5
    else:
        assert status == 1 and written == []
        (line,) = said.err.strip().splitlines()  # one, so no traceback either
        assert line.startswith("pointseg segment: ") and scan.name in line and ", expected " in line, line
        answer = Answer(1, line, None, "")
    shutil.rmtree(out, ignore_errors=True)
    return answer


def is_good(answer: Answer, expected: np.ndarray, spacing=SPACING, direction=DIRECTION) -> None:
    """The good scan's mask, in its geometry."""
    assert answer.status == 0, answer.error
    assert np.array_equal(sitk.GetArrayFromImage(answer.mask), expected)
    for found, wanted in ((answer.mask.GetSpacing(), spacing), (answer.mask.GetOrigin(), ORIGIN),
                          (answer.mask.GetDirection(), np.ravel(direction))):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def is_refused(answer: Answer, *said: str) -> None:
    assert answer.status == 1
    for text in said:
        assert text in answer.error, answer.error


def change(**tags):
    """Set these in every slice; None removes."""
    def apply(d, k):
        for tag, value in tags.items():
            if value is None:
                delattr(d, tag)
            else:
                setattr(d, tag, value)
    return apply


def only(number: int, **tags):
    return lambda d, k: change(**tags)(d, k) if k == number else None
