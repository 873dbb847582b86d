"""What lies in DICOM folders beside a scan, or in its place, and how scanners and archives write slices."""

import copy
import time

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from odd_scans import (
    DIRECTION,
    ORIGIN,
    SECONDS,
    SHAPE,
    SPACING,
    change,
    image_of,
    is_good,
    is_refused,
    only,
    save,
    segment,
    values,
    write_frames,
    write_slices,
)
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from pointseg.commands import main as cli
from pointseg.commands.scanlist import find_scans
from pointseg.datasets.manifest import read_manifest
from pointseg.scans.reading import read_image, read_mask
from pointseg.scans.volumes import geometry_of
from pointseg.volume import ScanError

STORAGE = "1.2.840.10008.5.1.4.1.1"
OTHERS = {"Segmentation": "66.4", "RT Dose": "481.2", "RT Structure Set": "481.3", "RT Plan": "481.5",
          "RT Image": "481.1", "Grayscale Softcopy Presentation State": "11.1", "Basic Text SR": "88.11",
          "X-Ray Radiation Dose SR": "88.67", "Key Object Selection Document": "88.59", "Encapsulated PDF": "104.1",
          "Positron Emission Tomography Image": "128", "Parametric Map": "30", "Raw Data": "66",
          "Spatial Registration": "66.1", "Computed Radiography Image": "1", "Ultrasound Image": "6.1",
          "Enhanced MR Color Image": "4.3", "Surface Segmentation": "66.5", "MR Spectroscopy": "4.2"}


def other_kind(path, kind: str, **tags) -> None:
    """A file of another SOP class beside slices, with pixels where it has some."""
    write_slices(path.parent / "made", values()[:1], change(
        SOPClassUID=f"{STORAGE}.{OTHERS[kind]}", SeriesInstanceUID=generate_uid(), **tags))
    (path.parent / "made" / "99.dcm").rename(path)
    (path.parent / "made").rmdir()


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_scan_is_set_aside_and_refused_by_name_where_it_is_all(kind, tmp_path):
    folder = write_slices(tmp_path / "scan", values())
    no_pixels = {} if "Image" in kind or kind in ("Segmentation", "RT Dose") else dict(Rows=None, PixelData=None)
    other_kind(folder / "other.dcm", kind, **no_pixels)
    stored = read_image(folder)
    assert np.array_equal(sitk.GetArrayViewFromImage(stored.image), values())
    assert stored.notes == (f"left aside 1 files that are no images of a scan ({kind})",)
    (tmp_path / "alone").mkdir()
    alone = (folder / "other.dcm").rename(tmp_path / "alone" / "1.dcm")
    for path in (alone, alone.parent):
        with pytest.raises(ScanError, match=f"found {kind}, expected a CT or MR scan"):
            read_image(path)


def test_a_segmentation_or_dose_of_many_frames_is_no_scan(tmp_path):
    for kind in ("Segmentation", "RT Dose"):
        scan = write_frames(tmp_path / f"{kind}.dcm", values().astype(np.int16))
        tags = pydicom.dcmread(scan)
        tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = f"{STORAGE}.{OTHERS[kind]}"
        tags.save_as(scan)
        with pytest.raises(ScanError, match=f"found {kind}"):
            read_image(scan)


def colour(d, k):
    d.SOPClassUID, d.SeriesInstanceUID = f"{STORAGE}.7", "1.2.3"
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PlanarConfiguration, d.BitsAllocated = 3, "RGB", 0, 8
    d.BitsStored, d.HighBit, d.PixelRepresentation = 8, 7, 0
    d.PixelData = bytes(3 * d.Rows * d.Columns)


@pytest.mark.parametrize("alter", [colour, change(SeriesInstanceUID="1.2.3", ImagePositionPatient=None)])
def test_a_report_as_a_picture_is_set_aside(alter, model, good, tmp_path, capsys):
    """In colour, or without a place, as a series of its own; a batch goes on, too."""
    folder = write_slices(tmp_path / "scan", values())
    write_slices(tmp_path / "report", values()[:2], alter)
    for path in (tmp_path / "report").iterdir():
        path.rename(folder / f"report {path.name}")
    answer = segment(folder, model, tmp_path, capsys)
    is_good(answer, good())
    assert "left aside" in answer.notes


def test_folders_of_other_kinds_are_passed_over_in_a_tree(model, good, tmp_path, capsys):
    """As archives unpack: CT/ beside SEG/ and RTSTRUCT/."""
    (tmp_path / "tree" / "SEG").mkdir(parents=True)
    (tmp_path / "tree" / "RTSTRUCT").mkdir()
    write_slices(tmp_path / "tree" / "CT", values())
    other_kind(tmp_path / "tree" / "SEG" / "1.dcm", "Segmentation")
    other_kind(tmp_path / "tree" / "RTSTRUCT" / "1.dcm", "RT Structure Set", Rows=None, PixelData=None)
    assert cli.main(["segment", str(tmp_path / "tree"), "--model", str(model), "-o", str(tmp_path / "out")]) == 0
    assert "1 done, 0 already done, 0 failed" in capsys.readouterr().out


def test_a_series_in_several_folders_is_not_several_scans(model, tmp_path, capsys):
    """As discs have it: IM0, IM1."""
    whole, tree = write_slices(tmp_path / "whole", values()), tmp_path / "tree"
    for number, path in enumerate(sorted(whole.iterdir())):
        (tree / f"IM{number // 8}").mkdir(parents=True, exist_ok=True)
        path.rename(tree / f"IM{number // 8}" / path.name)
    assert cli.main(["segment", str(tree), "--model", str(model), "-o", str(tmp_path / "out")]) == 1
    assert "IM1: found slices of a series that " in capsys.readouterr().err and not (tmp_path / "out").exists()
    for path in (tree / "IM1").iterdir():  # another patient's, whose UIDs some careless program has made the same
        tags = pydicom.dcmread(path)
        tags.PatientID = "p2"
        tags.save_as(path)
    assert len(find_scans([tree], tmp_path / "out")) == 2


def text(tag: str, value: str):
    """Whatever a tag should hold."""
    def apply(d, k):
        d.pop(tag, None)
        d.add_new(pydicom.datadict.tag_for_keyword(tag), "LO", value)
    return apply


@pytest.mark.parametrize(("alter", "said"), [
    (text("Rows", "abc"), "dcm: found a Rows that is no number"), (text("Columns", "24\\24"), "a Columns that is no"),
    (text("NumberOfFrames", "x"), "a NumberOfFrames that is no"), (text("NumberOfFrames", "-3"), "a NumberOfFrames"),
    (text("SamplesPerPixel", "x"), "a SamplesPerPixel that"), (change(Rows=None), "no Rows and Columns"),
    (text("Rows", ""), "24 x 0 pixels"), (change(BitsAllocated=64), "found pixels of 64 bits"),
    (change(BitsStored=12, HighBit=15), "12 of them in use up to number 15"),  # which GDCM would not shift
    (change(PhotometricInterpretation="PALETTE COLOR"), "found colour image"),
    (change(PixelData=None, FloatPixelData=bytes(1920), BitsAllocated=32), "dcm: .*it holds no PixelData"),
    (only(3, SeriesInstanceUID=None), "no SeriesInstanceUID of 1 files"),
    (lambda d, k: change(ImagePositionPatient=[0, 0, k // 2])(d, k), "give those of one echo or time point")])
def test_odd_tags_are_named(alter, said, tmp_path):
    with pytest.raises(ScanError, match=said):
        read_image(write_slices(tmp_path / "scan", values(), alter))


def test_a_damaged_slice_does_not_make_its_folder_a_folder_of_scans(model, tmp_path, capsys):
    folder = write_slices(tmp_path / "scan", values())
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:200])
    is_refused(segment(folder, model, tmp_path, capsys), "84.dcm: cannot be read")


@pytest.mark.parametrize(("syntax", "said"), [
    ("1.2.840.113619.5.2", "transfer syntax 1.2.840.113619.5.2 is not one of the standard"),
    ("1.2.840.10008.1.2", "not written as its transfer syntax says"),
    ("1.2.840.10008.1.2.1", "not written as its transfer syntax says"),
    ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG")])
def test_transfer_syntaxes_that_are_not_read(syntax, said, tmp_path):
    """Another than the one in which the files are written takes GDCM seconds for each of them."""
    folder = write_slices(tmp_path / "scan", values())
    for path in folder.iterdir():
        tags = pydicom.dcmread(path)
        if syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            parts = {}
            for uid in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
                tags.file_meta.TransferSyntaxUID = uid
                tags.save_as(path)
                parts[uid] = path.read_bytes().partition(b"\x08\0\x08\0")  # the first tag of the data
            (other,) = parts.keys() - {syntax}
            path.write_bytes(b"".join((parts[syntax][0], *parts[other][1:])))
            continue
        tags.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        tags.PixelData = pydicom.encaps.encapsulate([tags.PixelData]) if "4.201" in syntax else tags.PixelData
        tags["PixelData"].is_undefined_length = "4.201" in syntax
        tags.save_as(path, enforce_file_format=False, implicit_vr=False, little_endian=True)
    start = time.monotonic()
    with pytest.raises(ScanError, match=f"dcm: cannot be read.*{said}"):
        read_image(folder)
    assert time.monotonic() - start < SECONDS


def test_frames_a_step_apart_that_is_none(tmp_path):
    """In older files, which have the first frame's place and a step."""
    scan = write_frames(tmp_path / "scan.dcm", values().astype(np.int16))
    tags = pydicom.dcmread(scan)
    tags.ImagePositionPatient, tags.PixelSpacing = [0, 0, 0], [1, 1]
    tags.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    del tags.PerFrameFunctionalGroupsSequence, tags.SharedFunctionalGroupsSequence
    for step in (0, -2.5):
        tags.SpacingBetweenSlices = step
        tags.save_as(scan)
        with pytest.raises(ScanError, match=f"found {step:g}.* SpacingBetweenSlices, expected 1 number"):
            read_image(scan)


def test_no_sop_class(model, good, tmp_path, capsys):
    folder = write_slices(tmp_path / "scan", values())
    for path in folder.iterdir():
        tags = pydicom.dcmread(path)
        del tags.SOPClassUID, tags.file_meta
        tags.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    is_good(segment(folder, model, tmp_path, capsys), good())


@pytest.mark.parametrize("how", ["the file", "a new UID", "packed otherwise"])
@pytest.mark.parametrize("which", ["99.dcm", "90.dcm", "84.dcm", "all"])
def test_copies_of_slices_count_once(how, which, model, good, tmp_path, capsys):
    folder = write_slices(tmp_path / "scan", values())
    originals = sorted(folder.iterdir()) if which == "all" else [folder / which]
    for path in originals:
        tags = pydicom.dcmread(path)
        if how == "a new UID":
            tags.SOPInstanceUID = generate_uid()
        if how == "packed otherwise":
            tags.compress(RLELossless)
        tags.save_as(folder / f"copy of {path.name}")
    answer = segment(folder, model, tmp_path, capsys)
    is_good(answer, good())
    assert f"left aside {len(originals)} copies of slices" in answer.notes


def test_another_slice_at_a_place_is_no_copy(model, tmp_path, capsys):
    folder = write_slices(tmp_path / "scan", values())
    tags = pydicom.dcmread(folder / "90.dcm")
    tags.PixelData = tags.PixelData[::-1]
    tags.save_as(folder / "echo.dcm")
    is_refused(segment(folder, model, tmp_path, capsys), "some positions occur twice")


@pytest.mark.parametrize("step_mm", [0.625, 0.33, 1.25, 2.5])
def test_rounded_positions(step_mm, model, tmp_path, capsys):
    """To 0.1 mm: the best line has the true step."""
    def rounded(d, k):
        d.ImagePositionPatient = [f"{c:.1f}" for c in np.array(ORIGIN) + DIRECTION[:, 2] * step_mm * k]
    array = np.repeat(values(), 4, axis=0)
    answer = segment(write_slices(tmp_path / "scan", array, rounded), model, tmp_path, capsys)
    assert answer.status == 0, answer.error
    assert answer.mask.GetSpacing()[2] == pytest.approx(step_mm, abs=0.002)
    for faulty in (only(30, gone=True), only(1, gone=True), only(62, gone=True)):
        def with_gap(d, k, faulty=faulty):
            rounded(d, k)
            faulty(d, k)
        is_refused(segment(write_slices(tmp_path / "gap", array, with_gap), model, tmp_path, capsys), "expected even")
        for path in (tmp_path / "gap").iterdir():
            path.unlink()


def test_a_slice_that_lies_aside(model, tmp_path, capsys):
    def aside(d, k):
        if k == 7:
            d.ImagePositionPatient = [f"{float(a) + 5 * b:.6f}" for a, b in
                                      zip(d.ImagePositionPatient, DIRECTION[:, 0], strict=True)]
    is_refused(segment(write_slices(tmp_path / "scan", values(), aside), model, tmp_path, capsys), "5 mm sideways")


def test_three_hundred_series_are_not_all_named(model, tmp_path, capsys):
    array = np.zeros((300, 4, 4), np.int16)
    folder = write_slices(tmp_path / "scan", array, lambda d, k: change(SeriesInstanceUID=generate_uid())(d, k))
    for options in ((), ("--series", "1.9")):
        answer = segment(folder, model, tmp_path, capsys, *options)
        is_refused(answer, "and 295 more", "--series" if not options else "choose among")
        assert len(answer.error) < 1000


def enhanced(d, k):
    """As an Enhanced MR of one frame a file has it: places in groups."""
    d.SOPClassUID, d.NumberOfFrames = f"{STORAGE}.4.1", 1

    def group(**tags) -> Sequence:
        item = Dataset()
        for tag, value in tags.items():
            setattr(item, tag, value)
        return Sequence([item])
    d.PerFrameFunctionalGroupsSequence = group(
        PlanePositionSequence=group(ImagePositionPatient=d.ImagePositionPatient))
    d.SharedFunctionalGroupsSequence = group(
        PlaneOrientationSequence=group(ImageOrientationPatient=d.ImageOrientationPatient),
        PixelMeasuresSequence=group(PixelSpacing=d.PixelSpacing, SliceThickness=SPACING[2]),
        PixelValueTransformationSequence=group(RescaleSlope=d.RescaleSlope, RescaleIntercept=d.RescaleIntercept,
                                               RescaleType="US"))
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(d, tag)


def test_enhanced_files_of_one_frame(model, good, tmp_path, capsys):
    array = values() + 1000

    def alter(d, k):
        d.RescaleIntercept, d.PixelData = 0, array[k].tobytes()
        enhanced(d, k)
    is_good(segment(write_slices(tmp_path / "scan", array, alter, "MR"), model, tmp_path, capsys), good(array, "MR"))


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
def test_a_packed_slice_that_is_cut_is_named(share, model, tmp_path, capsys):
    folder = write_slices(tmp_path / "scan", values())
    for path in folder.iterdir():
        tags = pydicom.dcmread(path)
        tags.compress(RLELossless)
        tags.save_as(path)
    tags = pydicom.dcmread(folder / "90.dcm")
    (frame,) = pydicom.encaps.generate_frames(tags.PixelData, number_of_frames=1)
    tags.PixelData = pydicom.encaps.encapsulate([frame[: int(len(frame) * share) // 2 * 2]])
    tags.save_as(folder / "90.dcm")
    is_refused(segment(folder, model, tmp_path, capsys), "90.dcm: cannot be read")


@pytest.mark.parametrize("at", [10, 140, 200, 330, 500])
def test_a_slice_cut_in_its_header_is_not_passed_over(at, model, tmp_path, capsys):
    """The outermost one, whose loss would leave even steps."""
    folder = write_slices(tmp_path / "scan", values())
    path = folder / "84.dcm"
    path.write_bytes(path.read_bytes()[:at])
    answer = segment(folder, model, tmp_path, capsys)
    if at > 132:
        is_refused(answer, "84.dcm")
    else:  # nothing tells that it was one
        assert "left aside 1 files that are not DICOM (84.dcm)" in answer.notes


@pytest.mark.parametrize(("tags", "said"), [
    (dict(RescaleSlope=None, RescaleIntercept=None), "0 to 2187"), (dict(RescaleIntercept=None), "0 to 2187"),
    (dict(RescaleIntercept=24), "24 to 2211")])
def test_a_ct_that_is_not_in_hu_is_said(tags, said, model, tmp_path, capsys):
    folder = write_slices(tmp_path / "scan", values(), change(**tags))
    answer = segment(folder, model, tmp_path, capsys)
    assert answer.status == 0 and f"CT, but not in Hounsfield units: its values run from {said}" in answer.notes


@pytest.mark.parametrize("alter", [lambda v: v + 1024, lambda v: v.astype(np.uint16), lambda v: v / 1000.0,
                                   lambda v: v + 1024 + np.random.default_rng(0).normal(0, 20, v.shape)])
def test_a_ct_file_that_is_not_in_hu_is_said(alter, model, tmp_path, capsys):
    scan = save(tmp_path / "scan.nii", alter(values()))
    answer = segment(scan, model, tmp_path, capsys, "--modality", "CT")
    assert answer.status == 0 and "CT, but not in Hounsfield units" in answer.notes


@pytest.mark.parametrize(("slope", "intercept"), [(0, 0), ("nan", 0), ("inf", 0), (1, "inf"), (1, "nan"), ("x", 0)])
def test_odd_rescaling_is_refused(slope, intercept, model, tmp_path, capsys):
    def alter(d, k):
        d.pop("RescaleSlope"), d.pop("RescaleIntercept")
        d.add_new("RescaleSlope", "LO", str(slope))
        d.add_new("RescaleIntercept", "LO", str(intercept))
    is_refused(segment(write_slices(tmp_path / "scan", values(), alter), model, tmp_path, capsys), "found ", "Rescale")


def test_an_item_longer_than_the_file(tmp_path):
    """In it GDCM would look for the pixels for ever."""
    scan = write_frames(tmp_path / "scan.dcm", values().astype(np.int16))
    data = scan.read_bytes()
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    assert item in data
    scan.write_bytes(data.replace(item, b"\xfe\xff\x00\xe0\xef\xff\xff\xff", 1))
    with pytest.raises(ScanError, match="scan.dcm: cannot be read"):
        read_image(scan)


# --- masks ---

def write_segmentation(path, mask: np.ndarray, kind: str = "BINARY", names: dict[int, str] | None = None):
    """A DICOM segmentation (SEG) on the grid of the good scan: a frame for each slice that shows a segment."""
    d, frames, groups = Dataset(), [], []
    for value in np.unique(mask[mask > 0]).tolist():
        for k, plane in enumerate(mask == value):
            if plane.any():
                frames.append(plane)
                place, segment, item = Dataset(), Dataset(), Dataset()
                place.ImagePositionPatient = [f"{c:.9f}" for c in np.array(ORIGIN) + DIRECTION[:, 2] * SPACING[2] * k]
                segment.ReferencedSegmentNumber = value
                item.PlanePositionSequence, item.SegmentIdentificationSequence = [place], [segment]
                groups.append(item)
    d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = f"{STORAGE}.66.4", generate_uid(), generate_uid()
    d.Modality, d.Rows, d.Columns, d.NumberOfFrames = "SEG", *mask.shape[1:], len(frames)
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, "MONOCHROME2", 0
    d.SegmentationType = kind
    d.BitsAllocated = d.BitsStored = 1 if kind == "BINARY" else 8
    d.HighBit, d.MaximumFractionalValue = d.BitsStored - 1, 200
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    orientation.ImageOrientationPatient = [f"{c:.12f}" for c in DIRECTION[:, :2].T.ravel()]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    d.SharedFunctionalGroupsSequence, d.PerFrameFunctionalGroupsSequence = [shared], groups
    d.SegmentSequence = []
    for value, name in (names or {}).items():
        described = Dataset()
        described.SegmentNumber, described.SegmentLabel = value, name
        d.SegmentSequence.append(described)
    array = np.array(frames)
    pixels = np.packbits(array.ravel(), bitorder="little") if kind == "BINARY" else array * np.uint8(190)
    d.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.save_as(path, enforce_file_format=True)
    return path


def drawn() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:6, 6:12, 6:12], mask[8:11, 6:12, 6:12] = 1, 2
    mask[10, 6:9, 6:12] = 0
    return mask


def write_labelmap(path, mask: np.ndarray, bits: int):
    """A label map segmentation: a frame a slice, whose values are the segments' numbers."""
    write_segmentation(path, np.ones_like(mask), "FRACTIONAL", {1: "L1", 2: "L2"})
    d = pydicom.dcmread(path)
    for groups in d.PerFrameFunctionalGroupsSequence:
        del groups.SegmentIdentificationSequence
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = f"{STORAGE}.66.7"
    d.SegmentationType, d.PhotometricInterpretation = "LABELMAP", "PALETTE COLOR"
    d.BitsAllocated, d.BitsStored, d.HighBit = bits, bits, bits - 1
    d.PixelData = mask.astype(f"u{bits // 8}").tobytes()
    d.save_as(path)
    return path


@pytest.mark.parametrize("bits", [8, 16])
def test_a_label_map_is_a_mask(bits, tmp_path):
    """Of a SOP class that pydicom may not know; beside a scan it is left aside, and in its place refused."""
    path = write_labelmap(tmp_path / "a.dcm", drawn(), bits)
    stored = read_mask(path)
    assert np.array_equal(sitk.GetArrayViewFromImage(stored.image), drawn())
    np.testing.assert_allclose(geometry_of(stored.image).direction, DIRECTION.ravel(), atol=1e-5)
    assert stored.notes == ("its segments are 1 L1, 2 L2",)
    with pytest.raises(ScanError, match="found Segmentation, expected a CT or MR scan"):
        read_image(path)
    path.rename(write_slices(tmp_path / "scan", values()) / "a.dcm")
    assert read_image(tmp_path / "scan").notes == ("left aside 1 files that are no images of a scan (Segmentation)",)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_a_dicom_segmentation_is_a_mask(kind, tmp_path, capsys):
    """Imported beside its DICOM scan; slices 6 and 7 have no frame."""
    raw = tmp_path / "raw"
    for name in ("images", "masks"):
        (raw / name).mkdir(parents=True)
    write_slices(raw / "images" / "a", values())
    write_segmentation(raw / "masks" / "a.dcm", drawn(), kind, {1: "L1 vertebra", 2: "L2 vertebra"})
    status = cli.main(["import", "folder", str(raw), str(tmp_path / "data"), "--masks", "masks/*.dcm",
                       "--labels", "1=L1", "2=L2"])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "its segments are 1 L1 vertebra, 2 L2 vertebra" in said.out
    (case,) = read_manifest(tmp_path / "data")
    written = sitk.ReadImage(str(case.mask))
    assert np.array_equal(sitk.GetArrayFromImage(written), np.where(drawn(), drawn() + 19, 0))
    np.testing.assert_allclose(geometry_of(written).direction, DIRECTION.ravel(), atol=1e-5)


def test_segmentations_that_are_no_mask(tmp_path):
    path = write_segmentation(tmp_path / "a.dcm", drawn())
    twice = pydicom.dcmread(path)
    for item in twice.PerFrameFunctionalGroupsSequence[3:]:
        item.PlanePositionSequence = copy.deepcopy(twice.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence)
    twice.save_as(path)
    with pytest.raises(ScanError, match="a.dcm: found voxels of two segments"):
        read_mask(path)
    twice.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence = []
    twice.save_as(path)
    with pytest.raises(ScanError, match="a.dcm: cannot be read .a frame does not say of which segment it is"):
        read_mask(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ScanError, match="a.dcm: cannot be read"):
        read_mask(path)
    other_kind(tmp_path / "contours.dcm", "RT Structure Set", Rows=None, PixelData=None)
    with pytest.raises(ScanError, match="contours.dcm: found RT Structure Set, expected a mask.*convert it to NIfTI"):
        read_mask(tmp_path / "contours.dcm")


def test_a_segmentation_of_one_slice(tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[5, 6:12, 6:12] = 3
    image = read_mask(write_segmentation(tmp_path / "a.dcm", mask)).image
    on_scan = sitk.Resample(image, image_of(values()), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    assert np.array_equal(sitk.GetArrayFromImage(on_scan), mask)
