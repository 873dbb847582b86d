"""What commands say: of one line and not too long, apart from progress bars; and what was done to a scan."""

import re

import numpy as np
import pytest
from odd_scans import save, values

import pointseg
from pointseg.commands import main as cli
from pointseg.datasets.manifest import Case, read_manifest, write_manifest
from pointseg.datasets.split import read_and_prepare
from pointseg.scans.files import first_line, some_of
from pointseg.volume import ScanError


@pytest.fixture
def folder(tmp_path):
    """A dataset folder of one scan, a CT 1024 above Hounsfield units."""
    mask = np.zeros_like(values(), np.uint8)
    mask[5:11, 6:14, 6:18] = 20
    image, mask = save(tmp_path / "a.nii.gz", values() + 1024), save(tmp_path / "m.nii.gz", mask)
    write_manifest(tmp_path, [Case("a", "1", "p", "CT", image, mask)])
    return tmp_path


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"pointseg {pointseg.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", pointseg.__version__)


@pytest.mark.parametrize("error", [ScanError("a.nii: found nothing, expected a scan"), KeyboardInterrupt()])
def test_a_message_has_a_line_of_its_own(error, folder, model, capsys, monkeypatch):
    """Not the end of the progress bar that it breaks off."""
    def fail(case):
        raise error
    monkeypatch.setattr(Case, "read", fail)
    assert cli.main(["evaluate", str(model), "--data", str(folder)]) > 0
    assert capsys.readouterr().err.split("\n")[-2].startswith("pointseg evaluate: ")


def test_no_memory_is_a_line(folder, model, capsys, monkeypatch):
    def fail(case):
        raise MemoryError("Unable to allocate 107. GiB")
    monkeypatch.setattr(Case, "read", fail)
    assert cli.main(["evaluate", str(model), "--data", str(folder)]) == 1
    assert capsys.readouterr().err.endswith("pointseg evaluate: the machine is out of memory, expected room for the "
                                            "work; crop the scans, or take a larger one\n")


def test_no_message_is_too_long_to_read():
    text = f"{'/long' * 900}/scan.nii: found {', '.join(map(str, range(9999)))}, expected one; look for the others"
    said = str(ScanError(text))
    assert len(said) < 1500 and said.startswith("/long") and said.endswith("expected one; look for the others")
    assert first_line(ValueError(text)) == said and str(ScanError(said)) == said
    assert some_of("abcdefg") == "a, b, c, d, e, and 2 more" and some_of("abc") == "a, b, c"


def test_what_is_made_up_for_in_a_case_is_said(folder, model, capsys):
    """By evaluate, and where scans are prepared."""
    told = "a/1: CT, but not in Hounsfield units"
    assert cli.main(["evaluate", str(model), "--data", str(folder)]) == 0
    assert told in capsys.readouterr().out
    read_and_prepare(read_manifest(folder)[0], 3.0)
    assert told in capsys.readouterr().out
