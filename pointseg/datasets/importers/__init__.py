"""Public raw datasets -> dataset folders.   One module a dataset; each knows its published layout and its traps.

A module has SOURCE, MASK_EXTENT, MODALITY and LAYOUT, `find(raw)`, which lists the scans of a raw folder from file
names alone, and `read(found)`, which returns one of them with its mask in VerSe's numbers.  `convert` does the rest.
"""

import importlib
from types import ModuleType

NAMES = ("xvertseg", "usiegen", "plos", "myosegmentum", "uwspine", "verse", "spider", "totalsegmentator", "ctspine1k",
         "folder")


def importer(name: str) -> ModuleType:
    """The module of a dataset."""
    return importlib.import_module(f"pointseg.datasets.importers.{name}")
