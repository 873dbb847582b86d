"""What the machine may be like: names in any script, nobody who reads, no room, no right to link, variables of others.

Each ends well, or in one line."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from odd_scans import save

from pointseg.commands import main as cli
from pointseg.scans.files import whole_file
from pointseg.volume import ScanError


@pytest.fixture
def segments(model, tmp_path):
    """Segment a scan of this name, and what the exit status was."""
    def run(name: str = "scan.nii.gz", mask: str = "mask.nii.gz") -> int:
        return cli.main(["segment", str(save(tmp_path / name)), "--model", str(model), "-o", str(tmp_path / mask)])
    return run


def alone(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)


# --- names ---

@pytest.mark.parametrize("folder", ["mask.nii.gz", "mask.png", "mask.json"])
def test_an_output_that_is_a_folder(folder, segments, tmp_path, capsys):
    (tmp_path / folder).mkdir()
    assert segments() == 1
    said = capsys.readouterr().err.strip()
    assert f"{folder}: is a folder, expected a file to write" in said and "\n" not in said
    assert {p.name for p in tmp_path.iterdir()} >= {folder, "scan.nii.gz"} and not list(tmp_path.glob("mask.*/*"))


@pytest.mark.parametrize("arguments", [["train", "--data", "nowhere", "-o"], ["evaluate", "m.pt", "--data", "d",
                                                                                      "--json"]])
def test_other_outputs_that_are_folders(arguments, tmp_path, capsys):
    """Said before any work, or any data are looked for."""
    assert cli.main([*arguments, str(tmp_path)]) == 1
    assert f"{tmp_path}: is a folder, expected a file" in capsys.readouterr().err


def test_a_summary_that_is_a_folder(model, tmp_path, capsys):
    (tmp_path / "out" / "summary.csv").mkdir(parents=True)
    assert cli.main(["segment", str(save(tmp_path / "s.nii")), "--model", str(model), "-o", str(tmp_path / "out")]) == 1
    assert "summary.csv: is a folder" in capsys.readouterr().err and len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.posix
@pytest.mark.parametrize("command", ["segment x.nii --model LONG -o m.nii", "segment x.nii --model MODEL -o LONG.nii",
                                     "segment x.nii --model MODEL -o LONG", "evaluate LONG --data d",
                                     "evaluate MODEL --data LONG", "evaluate MODEL --data d --json LONG",
                                     "train --data d -o LONG", "table1 --out LONG"])
def test_a_name_that_the_system_does_not_take(command, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.replace("LONG", "a" * 300).replace("MODEL", str(model)).split()) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be" in said and "File name too long" in said


@pytest.mark.parametrize("command", [["segment", "", "-o", "x"], ["segment", "x", "-o", ""], ["table1", "--out", ""],
                                     ["evaluate", "m", "--data", ""], ["import", "verse", "", "d"]])
def test_a_name_that_is_empty(command, capsys):
    """As of a shell's variable that is not set: not the folder that one works in."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(command)
    assert "is empty, expected the name of a file or folder" in capsys.readouterr().err


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Of one case, with clicks."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a_img.nii.gz", "a_vert.nii.gz", "a_img.csv"):
        save(folder / name) if name.endswith("gz") else (folder / name).write_text("clicks")
    (folder / "manifest.csv").write_text("source,case,patient,modality,image,mask,points\n"
                                         "s,a,a,CT,a_img.nii.gz,a_vert.nii.gz,a_img.csv\n")
    return folder


@pytest.mark.parametrize("command", [
    "evaluate MODEL --data DATA --json MODEL", "evaluate MODEL --data DATA --json DATA/manifest.csv",
    "evaluate MODEL --data DATA --json DATA/a_vert.nii.gz", "train --data DATA -o DATA/manifest.csv",
    "train --data DATA -o DATA/a_img.nii.gz", "segment DATA/a_img.nii.gz --model MODEL -o MODEL",
    "segment DATA --model MODEL -o OUT", "export --data DATA -o DATA --format .csv"])
def test_no_output_takes_the_place_of_an_input(command, model, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    copy = shutil.copy(model, tmp_path / "out" / "a_img.nii.gz")  # a name that a mask can have
    before = {p: p.read_bytes() for p in (copy, *dataset.iterdir())}
    for name, path in (("MODEL", copy), ("DATA", dataset), ("OUT", tmp_path / "out")):
        command = command.replace(name, str(path))
    assert cli.main(command.split()) == 1
    assert "is read by this very command" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in before}


@pytest.mark.parametrize("command", ["export --data d -o o --jitter-mm nan", "export --data d -o o --jitter-mm -1",
                                     "export --data d -o o --wrong-levels 1.5", "table1 --seed 9999999999",
                                     "export --data d -o o --towards-middle inf", "train --data d --batch 9999999999"])
def test_numbers_that_nothing_can_be_done_with(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(command.split())
    assert re.search(r"error: argument --[a-z-]+: [\w.-]+ is (fewer than|not one of) ", capsys.readouterr().err)


def test_more_processes_than_cores(dataset, tmp_path):
    arguments = ["train", "--data", str(dataset), "--cache", str(tmp_path), "--workers", "1000000"]
    plan = cli.chosen_plan(cli.parser().parse_args(arguments), dataset)
    assert plan.machine.workers == os.cpu_count()


def test_a_name_of_two_lines_takes_one(model, tmp_path, capsys):
    assert cli.main(["segment", str(tmp_path / "a\nb.nii"), "--model", str(model), "-o", str(tmp_path / "out")]) == 1
    assert "a\\nb.nii    failed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["腰椎", "a$_^$b", "Rücken 1", "#1 %s {x}"])
def test_a_terminal_of_few_letters_and_a_name_of_others(name, segments, tmp_path, monkeypatch):
    letters = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(letters, encoding="cp1252"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of letters that a picture's font lacks
        assert segments(f"{name}.nii.gz", f"{name} mask.nii.gz") == 0
    assert b"written to" in letters.getvalue() and (tmp_path / f"{name} mask.png").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_name_that_is_not_utf_8(model, tmp_path, capsys):
    scan = tmp_path / os.fsdecode(b"\xff.nii")
    scan.write_bytes(save(tmp_path / "a.nii").read_bytes())
    assert cli.main(["segment", str(tmp_path), "--model", str(model), "-o", str(tmp_path / "out")]) == 1
    assert "1 of 2 scans failed" in capsys.readouterr().err
    assert "\\udcff.nii" in (tmp_path / "out" / "summary.csv").read_text(encoding="utf-8")


# --- streams ---

@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_nobody_reads_any_more(name, segments, model, tmp_path, monkeypatch):
    """As in `pointseg ... | head -1`: all that is to be done is done."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, name, os.fdopen(writing, "w", buffering=1))
    assert segments() == 0 and (tmp_path / "mask.nii.gz").is_file()
    assert cli.main(["segment", str(tmp_path / "scan.nii.gz"), "--model", str(model), "-o", str(tmp_path / "out")]) == 0
    assert cli.main(["segment", "missing", "--model", "m", "-o", "x"]) == 1
    getattr(sys, name).close()  # which writes what is left


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("closed", [True, False])
def test_there_is_no_stream(name, closed, segments, tmp_path, monkeypatch):
    stream = io.StringIO() if closed else None
    if closed:
        stream.close()
    monkeypatch.setattr(sys, name, stream)
    assert segments() == 0 and (tmp_path / "mask.nii.gz").is_file()
    assert cli.main(["segment", "missing", "--model", "m", "-o", "x"]) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no file here is always full")
def test_no_room_for_what_is_printed(segments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    assert segments() == 1
    assert "standard output: cannot be written to (No space left on device)" in capsys.readouterr().err
    sys.stdout.close()


def test_streams_that_are_closed_from_the_start_are_taken_by_no_file():
    done = alone("import os; os.close(0); os.close(1); os.close(2); from pointseg.__main__ import with_all_streams;"
                 "with_all_streams(); assert os.fstat(0) == os.fstat(1) == os.fstat(2);"
                 "assert os.open(os.devnull, os.O_RDONLY) > 2; os._exit(7)")
    assert done.returncode == 7


@pytest.mark.parametrize("command", [["train"], ["evaluate", "m.pt"]])
def test_an_error_does_not_stand_in_a_bar(command, monkeypatch, capsys):
    from tqdm.auto import tqdm

    def fails(options):
        for _ in tqdm(range(3), "working"):
            raise ScanError("oh")

    monkeypatch.setattr(cli, command[0], fails)
    assert cli.main([*command, "--data", "d"]) == 1
    assert f"pointseg {command[0]}: oh" in capsys.readouterr().err.split("\n")


# --- what others have set ---

@pytest.mark.parametrize(("size", "said"), [("", "nowhere: no such folder"), (" 1 ", "nowhere: no such folder"),
                                            ("many", "WORLD_SIZE=many: is no whole number"), ("-2", "is no whole"),
                                            ("2", "WORLD_SIZE=2: found no RANK, LOCAL_RANK, LOCAL_WORLD_SIZE")])
def test_torchruns_variables_in_part(size, said, tmp_path, monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert cli.main(["train", "--data", "nowhere", "-o", str(tmp_path / "m.pt")]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("wrong", "said"), [
    ({"RANK": "2"}, "RANK=2: is none of WORLD_SIZE=2"), ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_RANK=0: is none of"),
    ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999: the processes cannot meet there"), ({}, "cannot meet there")])
def test_torchruns_variables_that_do_not_fit(wrong, said, tmp_path, monkeypatch, capsys):
    """The last: a port that another program has."""
    with socket.create_server(("", 0)) as taken:
        fitting = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "localhost", "MASTER_PORT": str(taken.getsockname()[1])}
        for name, value in (fitting | wrong).items():
            monkeypatch.setenv(name, value)
        assert cli.main(["train", "--data", "nowhere", "-o", str(tmp_path / "m.pt")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pointseg train: ") and said in error


@pytest.mark.parametrize("variable", ["MPLBACKEND=nowhere", "NUMBA_NUM_THREADS=0", "NUMBA_NUM_THREADS=many"])
def test_what_libraries_would_stop_at(variable):
    """A backend that is not installed, threads that are none."""
    done = alone("import sys; sys.argv = ['pointseg', 'segment', 'missing.nii', '--model', 'm.pt', '-o', 'x.nii'];"
                 "from pointseg.__main__ import main; sys.exit(main())", **dict([variable.split("=")]))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "m.pt: no such file" in done.stderr


@pytest.mark.parametrize("taken_for", ["KeyboardInterrupt", "ImportError"])
def test_ctrl_c_while_modules_are_imported(taken_for):
    """NumPy, for one, makes an ImportError of it."""
    done = alone(f"""
import signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "numpy":
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise {taken_for}
sys.meta_path.insert(0, Finder())
from pointseg.__main__ import main
sys.exit(main())""")
    assert (done.returncode, done.stderr) == (130, "pointseg: interrupted\n")


def test_no_right_to_make_links(segments, monkeypatch):
    """As for most users of Windows."""
    def refused(*_, **__):
        raise OSError(1314, "A required privilege is not held by the client")

    for owner, name in ((os, "symlink"), (os, "link"), (Path, "symlink_to"), (Path, "hardlink_to")):
        monkeypatch.setattr(owner, name, refused)
    for scan in ("a.nii.gz", "b.nii", "c.mha", "d.mhd", "e.nrrd"):
        assert segments(scan, f"{scan[0]} mask.nii.gz") == 0


def test_what_is_synced_is_open_for_writing(tmp_path, monkeypatch):
    """Windows syncs nothing else."""
    monkeypatch.setattr(os, "fsync", lambda file: os.write(file, b""))
    with whole_file(tmp_path / "a") as part:
        part.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"
