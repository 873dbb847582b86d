"""What a result depends on besides its data: the code that makes it, and the libraries that the code rests on."""

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("torch", "numpy", "scipy", "numba", "scikit-image", "SimpleITK", "nibabel", "pydicom")


def identity_of(*modules: str) -> dict[str, str]:
    """A hash of the modules and of all of this package that they import, and the libraries' versions, by name."""
    return {"code": code_hash(*modules)} | {name: version(name) for name in LIBRARIES}


def code_hash(*modules: str) -> str:
    """Of the syntax of modules of this package, "procedure" say, and of all that they import, wherever they do so.

    A comment, a docstring or another shape of the text is not part of it.
    """
    waiting, known = [file for name in modules for file in _files_of(name)], {}
    while waiting:
        if (path := waiting.pop()) not in known:
            known[path], imported = _parsed(path, path.stat().st_mtime_ns)
            waiting += imported
    return hashlib.sha256(repr([(str(path.relative_to(PACKAGE)), known[path]) for path in sorted(known)]).encode()
                          ).hexdigest()


@lru_cache(None)
def _parsed(path: Path, changed_ns: int) -> tuple[str, list[Path]]:
    """A file's syntax, and the files that it imports; parsed once, for as long as it stays what it is."""
    tree = ast.parse(path.read_bytes())
    return _syntax(tree), list(_imported(tree))


def _files_of(name: str) -> Iterator[Path]:
    """The file of a module, and those of the folders that it lies in, which are run before it."""
    place = PACKAGE.joinpath(*name.split(".")) if name else PACKAGE
    yield from (p / "__init__.py" for p in (place, *place.parents) if p == PACKAGE or PACKAGE in p.parents
                if (p / "__init__.py").is_file())
    if place.with_suffix(".py").is_file():
        yield place.with_suffix(".py")


def _imported(tree: ast.Module) -> Iterator[Path]:
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]  # it may be a module
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, inside = name.partition(".")
            if package == "pointseg":
                yield from _files_of(inside)


def _syntax(tree: ast.Module) -> str:
    """Without docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
                node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
