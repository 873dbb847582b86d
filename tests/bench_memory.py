"""Memory that `pointseg segment` needs for a CT of 512 x 512 x 600 voxels, int16, in each format and on each grid.

`python tests/bench_memory.py` runs the command in a process of its own and prints its peak, against the 315 MB that the
voxels take and the 3 GB that are allowed.  The network is narrow: how wide it is matters per slice, not per scan.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pointseg.predict import Model
from pointseg.profiles import CLASSROOM
from pointseg.runs.models import save_model

SHAPE, SPACING = (600, 512, 512), (0.75, 0.75, 1.0)  # z y x; x y z in mm
ALLOWED_MB = 3000
CODE = """
import sys
from pathlib import Path
from pointseg.commands.main import main
code = main(sys.argv[1:])
status = Path("/proc/self/status").read_text()  # Linux; getrusage's peak begins with the parent's
print("peak", int(status.split("VmHWM:")[1].split()[0]) // 1024)
sys.exit(code)
"""


def scan() -> sitk.Image:
    """Air, a body, and a column of bone in it."""
    values = np.full(SHAPE, -1000, np.int16)
    values[:, 100:400, 80:430] = 40
    values[:, 100:400, 80:430] += (np.arange(350) % 50).astype(np.int16)
    for z in range(60, 540, 50):
        values[z : z + 35, 280:330, 230:290] = 500
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING)
    return image


def write_series(image: sitk.Image, folder: Path) -> Path:
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(image.GetDepth()):
        plane = image[:, :, k : k + 1]
        for tag, value in {"0008|0060": "CT", "0020|000e": "1.2.3", "0008|0018": f"1.2.3.{k}",
                           "0020|0037": r"1\0\0\0\1\0", "0020|0032": rf"0\0\{k * SPACING[2]}"}.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k:03d}.dcm"))
        writer.Execute(plane)
    return folder


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = scan()
        scans = [folder / f"scan{ending}" for ending in (".nii.gz", ".nii", ".mha")]
        for path in scans:
            sitk.WriteImage(image, str(path))
        scans.append(write_series(image, folder / "dicom"))
        del image
        print(f"{'512 x 512 x 600 int16 CT':<28}{'grid':>8}{'peak':>10}{'allowed':>10}{'time':>8}")
        for grid_mm, input_px in ((2.0, 192), (1.0, 352)):
            model = folder / f"{grid_mm}.pt"
            network = replace(CLASSROOM, width=1 / 8).network(6, seed=0)
            save_model(model, Model(network, "sagittal", grid_mm, input_px))
            for path in scans:
                start = time.monotonic()
                out = subprocess.run([sys.executable, "-c", CODE, "segment", str(path), "--model", str(model), "-o",
                                      str(folder / "mask.nii.gz")], check=True, capture_output=True, text=True).stdout
                peak_mb = int(out.split("peak")[-1])
                print(f"{path.name:<28}{grid_mm:>5g} mm{peak_mb:>7} MB{ALLOWED_MB:>7} MB"
                      f"{time.monotonic() - start:>6.0f} s", flush=True)


if __name__ == "__main__":
    main()
