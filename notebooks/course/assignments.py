"""The assignments of the course.   python notebooks/course/assignments.py [NAME]

Without a name it prints those that there are, with one it makes a new assignment of that name from template.ipynb.
Each is a folder in source/ that holds a notebook of its own name.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent


def assignments(course: Path = HERE) -> list[Path]:
    """The notebook of each assignment.   ValueError names a folder that holds another one, or none."""
    paths = []
    for folder in sorted(x for x in (course / "source").iterdir() if x.is_dir() and not x.name.startswith(".")):
        names = sorted(x.name for x in folder.glob("*.ipynb"))
        if names != [f"{folder.name}.ipynb"]:
            found = ", ".join(names) or "no notebook"
            raise ValueError(f"{folder}: found {found}, expected {folder.name}.ipynb alone, "
                             "since nbgrader goes by both names; a new assignment: make assignment NAME=...")
        paths.append(folder / names[0])
    return paths


def new(name: str, course: Path = HERE) -> Path:
    """A folder in source/ with a copy of the template, whose checks fail until they are filled in."""
    path = course / "source" / name / f"{name}.ipynb"
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"NAME={name}: found a name that Python cannot use, expected one like size_prior")
    if path.parent.exists():
        raise ValueError(f"{path.parent}: it exists already; choose another name")
    path.parent.mkdir()
    path.write_text((course / "template.ipynb").read_text(encoding="utf-8").replace("NAME", name), encoding="utf-8")
    return path


if __name__ == "__main__":
    try:
        if len(sys.argv) > 1:
            print(f"{new(sys.argv[1])}: fill in what says FILL IN; then answers to it in tests/lessons/answers, a line "
                  "in README.md, and make test")
        else:
            print(*(path.stem for path in assignments()))
    except ValueError as error:
        sys.exit(str(error))
