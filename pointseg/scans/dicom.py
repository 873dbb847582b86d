"""DICOM in: which files of a folder are one scan, and where its slices lie.

pydicom reads the headers, sequences included, in which multi-frame files keep the place of each frame and which
SimpleITK does not show; SimpleITK (GDCM) decodes the pixels.  Of two images that a folder may hold, none is guessed.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import UID

from pointseg.scans.files import Damaged, Stored, first_line, quiet, reason, some_of
from pointseg.volume import ScanError

UNEVEN_MAX = 0.1  # share of a step by which slices may lie off even places
ROUNDED_MM = 0.051  # and what rounding to 0.1 mm leaves, where that is more
SCAN_KINDS = ("CT Image", "MR Image", "Secondary Capture", "X-Ray 3D")  # in the standard's names of what scans can be
GROUPS = {"ImagePositionPatient": "PlanePositionSequence", "ImageOrientationPatient": "PlaneOrientationSequence",
          "PixelSpacing": "PixelMeasuresSequence", "RescaleSlope": "PixelValueTransformationSequence",
          "RescaleIntercept": "PixelValueTransformationSequence"}  # where enhanced files keep them
COSINE_TOLERANCE = 1e-3
LOCALISER_WORDS = ("LOCALIZER", "LOCALISER", "SCOUT", "SURVEY", "TOPOGRAM")
TAGS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "PatientID",
        "PatientName", "PatientBirthDate", "Modality", "ImageType", "PhotometricInterpretation", "SamplesPerPixel",
        "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
        "PixelSpacing", "SpacingBetweenSlices", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope",
        "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
WHOLE = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit")


class NoPlace(ScanError):
    """A file that does not say where its slices lie."""


class NoScan(ScanError):
    """Files of another kind than scans; `files` has their paths by kind, such as "Segmentation"."""

    def __init__(self, message: str, files: dict[str, list[Path]]):
        super().__init__(message)
        self.files = files


@dataclass(frozen=True)
class Header:
    """A file and what its header says, pixels left out."""

    path: Path
    tags: Dataset

    @property
    def frames(self) -> int:
        return max(1, _whole(self.tags, "NumberOfFrames"))

    @property
    def series(self) -> str:
        return str(self.tags.get("SeriesInstanceUID") or "")

    @property
    def patient(self) -> tuple[str, ...]:
        return tuple(str(self.tags.get(tag) or "") for tag in ("PatientID", "PatientName", "PatientBirthDate"))

    @property
    def is_localiser(self) -> bool:
        words = [*map(str, _values(self.tags, "ImageType")), str(self.tags.get("SeriesDescription") or "")]
        return any(name in word.upper() for word in words for name in LOCALISER_WORDS)

    @property
    def has_pixels(self) -> bool:
        return "Rows" in self.tags and "Columns" in self.tags

    @property
    def is_placed(self) -> bool:
        return self.frames > 1 or bool(self.tags.get("ImagePositionPatient"))

    @property
    def other_kind(self) -> str:
        """What it is where it can be no scan, such as "Segmentation" or "RT Dose"; "" where it may be one.

        By its SOP class; one that the standard does not know is a manufacturer's, and may be a scan.
        """
        uid = UID(str(self.tags.get("SOPClassUID") or self.tags.file_meta.get("MediaStorageSOPClassUID") or ""))
        if self.tags.get("Modality") == "SEG":  # of which there are classes that pydicom does not know yet
            return "Segmentation"
        if uid.name != str(uid) and not any(kind in uid.name for kind in SCAN_KINDS):
            return uid.name.removesuffix(" Storage")
        colour = _whole(self.tags, "SamplesPerPixel") > 1 or (
            self.tags.get("PhotometricInterpretation") == "PALETTE COLOR")
        return "colour image" if colour else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """pydicom warns of every value that is longer than the standard allows, and of much else that does no harm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@_quiet()
def frames_in(folder: Path) -> dict[Path, int]:
    """The DICOM files that lie in this folder, and of how many slices each is; 0 for one that is no image of a scan."""
    headers = {path: _read_header(path) for path in _files(folder)}
    return {path: h.frames * (h.has_pixels and not h.other_kind) if h else 1  # one that is damaged, to be named
            for path, h in headers.items() if h or _says_dicom(path)}


@_quiet()
def series_in(folder: Path) -> tuple[str, ...]:
    """Series and patient of the first image of a scan in this folder; nothing where none says its series."""
    headers = filter(None, map(_read_header, _files(folder)))
    found = next((h for h in headers if h.has_pixels and not h.other_kind), None)
    return (found.series, *found.patient) if found and found.series else ()


@_quiet()
def read_series(folder: Path, series: str = "") -> Stored:
    """The one scan of a folder; `series` names it (its SeriesInstanceUID) where there are several.

    What is no image of a scan, localisers, series without places and copies of a slice are left aside where something
    else is there.  Files of one series are sorted by position.
    """
    headers = {path: _read_header(path) for path in _files(folder)}
    every, strangers = [h for h in headers.values() if h], [path for path, h in headers.items() if not h]
    if damaged := [path for path in strangers if _says_dicom(path)]:
        raise ScanError(f"{damaged[0]}: cannot be read, expected a complete DICOM file; copy or export it again")
    if not every:
        raise ScanError(f"{folder}: found no DICOM file in this folder, expected the slices of one scan; "
                        "give the folder that the files lie in, or a NIfTI, MHA or NRRD file")
    if series and series not in (found := _by_series(every)):
        raise ScanError(f"{folder}: found no series {series}, expected one of {_names(found)}; choose among these")
    every = found[series] if series else every
    found, notes = _by_series(_images(folder, every)), []
    if strangers:
        notes.append(f"left aside {len(strangers)} files that are not DICOM ({some_of([p.name for p in strangers])})")
    if others := [h.other_kind for h in every if h.other_kind]:
        notes.append(f"left aside {len(others)} files that are no images of a scan ({some_of(sorted(set(others)))})")
    for aside, what in ((lambda h: h.is_localiser, "localiser series"),
                        (lambda h: not h.is_placed, "series without the places of its slices")):
        scans = {uid: headers for uid, headers in found.items() if not all(map(aside, headers))}
        if 0 < len(scans) < len(found):
            notes.append(f"left aside {len(found) - len(scans)} {what}")
            found = scans
    if len(found) > 1:
        raise ScanError(f"{folder}: found {len(found)} DICOM series ({_names(found)}), expected one; "
                        "name the one you want by --series, or give it a folder of its own")
    (headers,) = found.values()
    if (localisers := [h for h in headers if h.is_localiser]) and len(localisers) < len(headers):
        headers = [h for h in headers if not h.is_localiser]
        notes.append(f"left aside {len(localisers)} localiser images of the same series")
    if len(patients := {h.patient for h in headers}) > 1:
        names = sorted(" ".join(filter(None, p)) or "no name" for p in patients)
        raise ScanError(f"{folder}: found files of {len(patients)} patients in one series ({some_of(names, '; ')}), "
                        "expected one; sort the files by patient")
    once = _without_copies(headers)
    if len(once) < len(headers):
        notes.append(f"left aside {len(headers) - len(once)} copies of slices")
    if len(multi := [h for h in once if h.frames > 1]):
        if len(once) > 1:
            raise ScanError(f"{folder}: found {len(once)} files in one series, {len(multi)} of them with several "
                            "frames, expected one such file or files of one slice each; give the file of the scan")
        return read_frames(once[0].path, notes)
    return _stored(folder, once, _places(folder, once), notes)


def _by_series(headers: Sequence[Header]) -> dict[str, list[Header]]:
    found: dict[str, list[Header]] = {}
    for header in headers:
        found.setdefault(header.series, []).append(header)
    return found


def _images(source: Path, headers: Sequence[Header]) -> list[Header]:
    """Those that may be of a scan: at least one, and each whole."""
    images = [h for h in headers if not h.other_kind]
    if not images:
        files: dict[str, list[Path]] = {}
        for header in headers:
            files.setdefault(header.other_kind, []).append(header.path)
        raise NoScan(f"{source}: found {some_of(sorted(files))}, expected a CT or MR scan of one grey value a pixel; "
                     "give the images that it belongs to", files)
    for header in images:
        if not header.has_pixels:
            raise ScanError(f"{header.path}: cannot be read (no Rows and Columns), expected a complete DICOM image; "
                            "copy or export it again")
        rows, columns, *_, allocated, stored, high = numbers = [_whole(header.tags, tag) for tag in WHOLE]
        if min(numbers) < 0:
            raise ScanError(f"{header.path}: found a {WHOLE[numbers.index(min(numbers))]} that is no number from 0 on, "
                            "expected one; copy or export it again")
        if min(rows, columns) < 2:
            raise ScanError(f"{header.path}: found slices of {columns} x {rows} pixels, "
                            "expected at least 2 x 2; look for the images of the scan")
        if allocated not in (0, 8, 16, 32) or (stored and high and high != stored - 1):
            raise ScanError(f"{header.path}: found pixels of {allocated} bits, {stored} of them in use up to number "
                            f"{high}, expected 8, 16 or 32 and the lowest of them; export it again")
    return images


def _without_copies(headers: Sequence[Header]) -> list[Header]:
    """Of slices at one place with the same pixels the first, and of files with many frames that are one."""
    kept: dict[tuple, list[Header]] = {}
    for header in headers:
        place = tuple(map(str, _values(header.tags, "ImagePositionPatient")))
        with contextlib.suppress(ValueError):
            place = tuple(map(float, place))
        twins = kept.setdefault(place if header.frames == 1 else str(header.tags.get("SOPInstanceUID")), [])
        if not any(_same_pixels(header, twin) for twin in twins):
            twins.append(header)
    return [header for twins in kept.values() for header in twins]


def _same_pixels(a: Header, b: Header) -> bool:
    return np.array_equal(*(sitk.GetArrayFromImage(_pixels(h.path, [h])) for h in (a, b)))


@_quiet()
def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, be it without the preamble that says so."""
    return _says_dicom(path) or _read_header(path) is not None


def _says_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


@_quiet()
def read_frames(path: Path, notes: Sequence[str] = ()) -> Stored:
    """A file with a frame for each slice (an Enhanced MR or CT), or a single slice, which is refused."""
    header = _read_header(path)
    if header is None:
        raise ScanError(f"{path}: found no DICOM image in it, expected one with a frame for each slice; "
                        "copy or export it again")
    _images(path, [header])
    if header.frames < 2:
        raise ScanError(f"{path}: found a single slice of {header.tags.Columns} x {header.tags.Rows} pixels, expected "
                        "a scan; give the folder of its slices")
    if "PerFrameFunctionalGroupsSequence" not in header.tags:
        notes = [*notes, "its header has one place for all frames, which are taken to follow each other in their order"]
    return _stored(path, [header], _frame_places(path, header), notes)


@dataclass(frozen=True)
class Places:
    """Where slices lie, one row a slice: mm in patient space (LPS)."""

    positions: np.ndarray  # (n, 3), of each slice's first pixel
    rows_columns: np.ndarray  # (6,) cosines of the row direction, then of the column direction
    spacing: tuple[float, float]  # between rows, between columns


def _places(folder: Path, headers: Sequence[Header]) -> Places:
    for header in headers:
        for tag, size in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
            _numbers(header.path, header.tags, tag, size)
        for tag in ("RescaleSlope", "RescaleIntercept"):
            if tag in header.tags:
                _numbers(header.path, header.tags, tag, 1)
    first = headers[0].tags
    for header in headers:
        for tag, tolerance in (("Rows", 0), ("Columns", 0), ("ImageOrientationPatient", COSINE_TOLERANCE),
                               ("PixelSpacing", 1e-3), ("BitsAllocated", 0), ("PixelRepresentation", 0),
                               ("RescaleSlope", 1e-6), ("RescaleIntercept", 1e-6)):
            a, b = (np.array(_values(tags, tag), float) for tags in (first, header.tags))
            if len(a) != len(b) or np.abs(a - b).max(initial=0) > tolerance:
                raise ScanError(f"{folder}: found slices of different {tag} in one series "
                                f"({_shown(a)} in {headers[0].path.name}, {_shown(b)} in {header.path.name}), "
                                "expected one stack of slices; give the files of one stack a folder of their own")
    return Places(np.array([_values(h.tags, "ImagePositionPatient") for h in headers], float),
                  np.array(_values(first, "ImageOrientationPatient"), float), tuple(map(float, first.PixelSpacing)))


def _frame_places(path: Path, header: Header) -> Places:
    """From the functional groups of an enhanced file: those of a frame first, then those that all frames share."""
    shared = _first(header.tags, "SharedFunctionalGroupsSequence")
    frames = list(header.tags.get("PerFrameFunctionalGroupsSequence") or [])
    if not frames and "SpacingBetweenSlices" in header.tags:  # older files: the first frame's place and a step
        first = _places(path, [header])
        step_mm = _numbers(path, header.tags, "SpacingBetweenSlices", 1)[0]
        normal = np.cross(first.rows_columns[:3], first.rows_columns[3:])
        return replace(first, positions=first.positions + np.arange(header.frames)[:, None] * step_mm * normal)
    if len(frames) != header.frames:
        raise NoPlace(f"{path}: found {header.frames} frames and the places of {len(frames)}, expected the place of "
                        "each; convert the file to NIfTI with a converter for your scanner, such as dcm2niix")

    def group(frame: Dataset, tag: str, size: int) -> list[float]:
        levels = (_first(frame, GROUPS[tag]), _first(shared, GROUPS[tag]), header.tags)
        return _numbers(path, next((level for level in levels if tag in level), header.tags), tag, size)

    positions = [group(f, "ImagePositionPatient", 3) for f in frames]
    orientations = [group(f, "ImageOrientationPatient", 6) for f in frames]
    spacings = [group(f, "PixelSpacing", 2) for f in frames]
    slopes = {tuple(group(f, tag, 1)[0] for tag in ("RescaleSlope", "RescaleIntercept")) for f in frames
              if any(_first(level, GROUPS["RescaleSlope"]) for level in (f, shared))}
    for name, values, tolerance in (("orientations", orientations, COSINE_TOLERANCE), ("spacings", spacings, 1e-3),
                                    ("grey value scales", list(slopes), 1e-6)):
        if len(values) > 1 and np.ptp(values, axis=0).max() > tolerance:
            raise ScanError(f"{path}: found frames of different {name}, expected one stack of slices; "
                            "export its stacks one by one")
    return Places(np.array(positions), np.array(orientations[0]), tuple(spacings[0]))


def _stored(source: Path, headers: Sequence[Header], places: Places, notes: Sequence[str]) -> Stored:
    """Pixels in the order of their places, on the grid that these make."""
    order, normal, step_mm = _stack(source, places, keep_order=len(headers) == 1)
    if len(headers) == 1:
        image = _pixels(source, headers)
        if image.GetDepth() != len(order):
            raise ScanError(f"{source}: found {image.GetDepth()} frames and the places of {len(order)}, expected as "
                            "many; copy or export the file again")
        if (order != np.arange(len(order))).any():
            image = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(image)[order])
    else:
        image = _pixels(source, [headers[i] for i in order])
    columns, rows = headers[0].tags.Columns, headers[0].tags.Rows
    if image.GetSize()[:2] != (columns, rows):
        raise ScanError(f"{source}: found {columns} x {rows} pixels a slice in the header and "
                        f"{' x '.join(map(str, image.GetSize()[:2]))} in the data, expected the same; export it again")
    across, down = places.rows_columns[:3], places.rows_columns[3:]
    image.SetSpacing((places.spacing[1], places.spacing[0], step_mm))
    image.SetOrigin(places.positions[order[0]].tolist())
    image.SetDirection(np.stack([across, down, normal], axis=1).ravel().tolist())
    modality = str(headers[0].tags.get("Modality") or "")
    inverted = {str(h.tags.get("PhotometricInterpretation") or "") == "MONOCHROME1" for h in headers}
    if True in inverted:
        if modality == "CT" or len(inverted) > 1:
            raise ScanError(f"{source}: found inverted grey values (MONOCHROME1) in a CT or in some slices only, "
                            "expected MONOCHROME2; export the scan again")
        notes = [*notes, "inverted grey values (MONOCHROME1) turned round"]  # by GDCM, which reads them so
    return Stored(image, modality if modality in ("CT", "MR") else "", tuple(notes))


def _stack(source: Path, places: Places, keep_order: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Slices as one stack.   -> their order, the direction in which they follow each other, their distance in mm.

    keep_order: slices that lie from last to first stay so, since masks may be drawn on them.
    """
    across, down = places.rows_columns[:3], places.rows_columns[3:]
    if (np.abs([across @ across - 1, down @ down - 1, across @ down]) > COSINE_TOLERANCE).any():
        raise ScanError(f"{source}: found ImageOrientationPatient {_shown(places.rows_columns)}, expected two "
                        "perpendicular directions of length 1; export the scan again")
    normal = np.cross(across, down)
    along_mm = places.positions @ normal
    if keep_order and (np.diff(along_mm) < 0).all():
        normal, along_mm = -normal, -along_mm
    order = np.argsort(along_mm, kind="stable")
    if len(order) < 2:
        raise ScanError(f"{source}: found a single slice, expected a scan; look for the other files of its series")
    steps_mm, numbers = np.diff(along_mm[order]), np.arange(len(order))
    step_mm, start_mm = np.polyfit(numbers, along_mm[order], 1)  # the best line, since positions may be rounded
    off_mm = np.abs(along_mm[order] - start_mm - step_mm * numbers).max()
    if not off_mm <= max(UNEVEN_MAX * step_mm, min(ROUNDED_MM, 0.25 * step_mm)) or steps_mm.min() < 1e-3:
        repeated, hint = "", "look for missing, repeated or damaged files"
        if steps_mm.min() < 1e-3:
            repeated = "; some positions occur twice, as in several echoes or time points"
            hint = "give those of one echo or time point a folder or file of their own"
        raise ScanError(f"{source}: found {len(order)} slices {steps_mm.min():.3g} to {steps_mm.max():.3g} mm apart"
                        f"{repeated}, expected even steps; {hint}")
    moved = places.positions[order] - places.positions[order[0]]
    sideways_mm = np.linalg.norm(moved - np.outer(moved @ normal, normal), axis=1).max()
    if sideways_mm > min(places.spacing):
        raise ScanError(f"{source}: found slices that move up to {sideways_mm:.3g} mm sideways (a tilted gantry), "
                        "expected each straight above the other; resample the scan to a straight grid first")
    return order, normal, float(step_mm)


@_quiet()
def read_segmentation(path: Path) -> Stored:
    """A DICOM segmentation as a mask: the number of its segment in each voxel, on the grid that its frames lie on.

    Frames hold a slice of one segment each; slices that show none may be missing.
    """
    whole = pydicom.dcmread(path)
    header, kind = Header(path, whole), whole.get("SegmentationType")
    places, shared = _frame_places(path, header), _first(whole, "SharedFunctionalGroupsSequence")
    across, down = places.rows_columns[:3], places.rows_columns[3:]
    normal = np.cross(across, down)
    along_mm = places.positions @ normal
    measures = _first(shared, "PixelMeasuresSequence")
    step_mm = float(measures.get("SpacingBetweenSlices") or np.diff(np.unique(along_mm.round(3))).min(
        initial=float(measures.get("SliceThickness") or np.inf)))
    at = (along_mm - along_mm.min()) / step_mm
    if not 0 < step_mm < np.inf or np.abs(at - at.round()).max() > 2 * UNEVEN_MAX:
        raise ScanError(f"{path}: found slices of a segmentation off even steps of {step_mm:g} mm, expected each on "
                        "one; convert it to NIfTI")
    at = at.round().astype(int)
    frames = whole.pixel_array.reshape(header.frames, whole.Rows, whole.Columns)
    if kind == "FRACTIONAL":
        frames = 2 * frames.astype(int) > (whole.get("MaximumFractionalValue") or 255)
    out = np.zeros((at.max() + 1, whole.Rows, whole.Columns), np.uint16)
    for frame, k, groups in zip(frames, at, whole.PerFrameFunctionalGroupsSequence, strict=True):
        value = frame
        if kind != "LABELMAP":
            named = _first(groups, "SegmentIdentificationSequence") or _first(shared, "SegmentIdentificationSequence")
            if (number := _whole(named, "ReferencedSegmentNumber")) < 1:
                raise Damaged("a frame does not say of which segment it is")
            value = frame.astype(bool) * np.uint16(number)
        if ((out[k] != 0) & (value != 0)).any():
            raise ScanError(f"{path}: found voxels of two segments, expected one each; convert the segments one by one")
        out[k] += value.astype(np.uint16)
    image = sitk.GetImageFromArray(out)
    image.SetSpacing((places.spacing[1], places.spacing[0], step_mm))
    image.SetOrigin(places.positions[along_mm.argmin()].tolist())
    image.SetDirection(np.stack([across, down, normal], axis=1).ravel().tolist())
    names = [f"{segment.get('SegmentNumber', '')} {segment.get('SegmentLabel', '')}".strip()
             for segment in whole.get("SegmentSequence", ())]
    return Stored(image, "", (f"its segments are {some_of(names, most=12)}",) if any(names) else ())


@_quiet()
def read_pixels(path: Path) -> sitk.Image:
    """The frames of a file as they are stored, whatever it says of their places."""
    header = _read_header(path)
    if header is None or not header.has_pixels:
        raise ScanError(f"{path}: found no DICOM image in it, expected one; copy it again")
    return _pixels(path, [header])


def _pixels(source: Path, headers: Sequence[Header]) -> sitk.Image:
    for header in headers:
        if _whole(header.tags, "SamplesPerPixel") > 1:
            raise ScanError(f"{header.path}: found colour, expected one grey value a pixel; convert the scan to grey "
                            "values")
        _check_length(header)
    files = [str(h.path) for h in headers]
    with quiet():
        try:
            return sitk.ReadImage(files if len(files) > 1 else files[0])
        except RuntimeError as error:
            why = reason(error)
    if len(headers) > 1:  # which of them?
        for header in headers:
            _pixels(header.path, [header])
    syntax = UID(str(headers[0].tags.file_meta.get("TransferSyntaxUID", "")))
    raise ScanError(f"{source}: cannot be read ({why}; its pixels are packed as {syntax.name or 'it does not say'}), "
                    "expected complete DICOM files; copy or export them again")


def _check_length(header: Header) -> None:
    """The decoder fills up with black what is missing at the end of uncompressed pixels."""
    try:
        whole = pydicom.dcmread(header.path, force=True)
        syntax = UID(whole.file_meta.get("TransferSyntaxUID", ""))
        if "PixelData" not in whole:
            raise Damaged("it holds no PixelData")
        if syntax and not syntax.is_transfer_syntax:
            raise Damaged(f"its transfer syntax {syntax} is not one of the standard")
        implicit = getattr(whole.get_item("PixelData"), "is_implicit_VR", None)
        if syntax and implicit not in (None, syntax.is_implicit_VR):  # over which GDCM takes minutes
            raise Damaged("its elements are not written as its transfer syntax says")
        found = len(whole.PixelData)
        with open(header.path, "rb") as file:
            before = file.read(whole["PixelData"].file_tell or 0)
        for item in re.finditer(rb"\xfe\xff\x00\xe0(....)", before, re.DOTALL):  # of sequences, with its length
            length = int.from_bytes(item[1], "little")
            if length != 0xFFFFFFFF and item.end() + length > header.path.stat().st_size:  # GDCM would never end
                raise Damaged("an item of a sequence is longer than the file")
    except Exception as error:  # whatever a damaged file makes of the reader
        raise ScanError(f"{header.path}: cannot be read ({first_line(error)}), expected a complete DICOM file; "
                        "copy or export it again") from None
    if not syntax or syntax.is_compressed:
        return
    expected = header.frames * int(whole.Rows) * int(whole.Columns) * int(whole.BitsAllocated) // 8
    if found < expected:
        raise ScanError(f"{header.path}: cannot be read ({found} of {expected} bytes of pixels), expected a complete "
                        "DICOM file; copy or export it again")


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _read_header(path: Path) -> Header | None:
    try:
        # force: files without the preamble exist.  Anything at all is read so, but has no SOP class nor these tags.
        tags = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(TAGS))
        header = Header(path, tags)
        if "SOPClassUID" not in tags and "MediaStorageSOPClassUID" not in tags.file_meta and not (
                header.has_pixels and header.series):
            return None
        if not header.other_kind and header.frames == 1:  # an enhanced file of one slice has its place in groups too
            for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
                for tag, sequence in GROUPS.items() if groups in tags else ():
                    if tag in (level := _first(_first(tags, groups), sequence)):
                        tags[tag] = level[tag]
        return header
    except Exception:  # whatever a file that is not DICOM makes of the reader
        return None


def _first(tags: Dataset, sequence: str) -> Dataset:
    items = tags.get(sequence)
    return items[0] if items else Dataset()


def _whole(tags: Dataset, tag: str) -> int:
    """A whole number; 0 where a header says none, and -1 where what it says is none."""
    try:
        return int(tags.get(tag) or 0)
    except (TypeError, ValueError):
        return -1


def _values(tags: Dataset, tag: str) -> list:
    value = tags.get(tag)
    if value is None:
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def _numbers(path: Path, tags: Dataset, tag: str, size: int) -> list[float]:
    try:
        values = [float(v) for v in _values(tags, tag)]
    except (TypeError, ValueError):
        values = []
    good = len(values) == size and np.isfinite(values).all() and ("Spacing" not in tag or min(values) > 0) and (
        tag != "RescaleSlope" or values != [0])
    if not good:
        found = "\\".join(map(str, _values(tags, tag)))[:80]
        raise NoPlace(f"{path}: found {found or 'no'} {tag}, expected {size} number{'s' * (size > 1)}; export the scan "
                        "again, or convert it to NIfTI")
    return values


def _names(found: dict[str, list[Header]]) -> str:
    def name(uid: str, headers: list[Header]) -> str:
        description = str(headers[0].tags.get("SeriesDescription") or "")
        of = f" ({description})" if description else ""
        return f"{uid or 'no SeriesInstanceUID'}{of} of {len(headers)} files"
    return some_of([name(uid, headers) for uid, headers in sorted(found.items())], "; ")


def _shown(values: Sequence[float]) -> str:
    return "\\".join(f"{v:g}" for v in values)
