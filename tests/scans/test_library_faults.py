"""What SimpleITK alone gets wrong, a small file each: it reads them as scans whose voxels or places are others.

Here they are refused.  A test that fails in its first half says that SimpleITK has learned it, and our check may go.
What takes it minutes, or for ever, is in `test_dicom_kinds.py`: an item of a sequence that is longer than the file,
and elements that are not written as the transfer syntax says.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from odd_scans import save, values, write_frames

from pointseg.scans.reading import read_image
from pointseg.volume import ScanError


def changed(name: str, pattern: bytes, replacement: Callable[[re.Match], bytes], packed: bool = False):
    """A file of that name whose bytes are changed once."""
    def write(folder: Path) -> Path:
        scan = save(folder / name, packed=packed)
        scan.write_bytes(re.sub(pattern, replacement, scan.read_bytes(), count=1, flags=re.DOTALL))
        return scan
    return write


def with_tags(**tags) -> Callable[[Path], Path]:
    """An older DICOM file of many frames, with other tags."""
    def write(folder: Path) -> Path:
        scan = write_frames(folder / "scan.dcm", (values() + 1000).astype(np.int16))
        d = pydicom.dcmread(scan)
        for name, value in tags.items():
            setattr(d, name, value)
        d.save_as(scan)
        return scan
    return write


def cut(folder: Path) -> Path:
    scan = write_frames(folder / "scan.dcm", (values() + 1000).astype(np.int16))
    d = pydicom.dcmread(scan)
    d.PixelData = d.PixelData[:-2000]
    d.save_as(scan)
    return scan


FAULTS = {
    "MHA, half of its CompressedDataSize": changed("scan.mha", rb"(CompressedDataSize = )(\d+)",
                                                   lambda m: m[1] + b"%d" % (int(m[2]) // 2), packed=True),
    "MHA, a line without =": changed("scan.mha", rb"CompressedDataSize = ", lambda m: b"Comment 1\n" + m[0],
                                     packed=True),
    "MHA, a bit of what is packed": changed("scan.mha", rb"(LOCAL\n.{3000})(.)",
                                            lambda m: m[1] + bytes([m[2][0] ^ 1]), packed=True),
    "MHA, centimetres": changed("scan.mha", rb"NDims = 3\n", lambda m: m[0] + b"DistanceUnits = cm\n"),
    "MHA, a narrower type": changed("scan.mha", rb"MET_SHORT", lambda m: b"MET_CHAR"),
    "NRRD, centimetres": changed("scan.nrrd", rb"encoding: ", lambda m: b'space units: "cm" "cm" "cm"\n' + m[0]),
    "NRRD, a narrower type": changed("scan.nrrd", rb"type: short", lambda m: b"type: int8"),
    "NRRD, data without directions": changed("scan.nrrd", rb"space directions: [^\n]*\n", lambda m: b""),
    "DICOM, pixels cut": cut,
    "DICOM, bits at another place": with_tags(BitsStored=12, HighBit=15),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_simpleitk_alone_reads_wrongly_is_refused(fault, tmp_path):
    scan = FAULTS[fault](tmp_path)
    sitk.ReadImage(str(scan))  # no error, for a wrong answer
    with pytest.raises(ScanError, match=re.escape(str(scan))):
        read_image(scan)
