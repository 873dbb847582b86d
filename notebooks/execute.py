"""Run notebooks from top to bottom and save them with their outputs.   python notebooks/execute.py [NOTEBOOK ...]

Without arguments all of them.  A notebook is saved only if every cell ran.  Widgets and progress bars are not saved:
without a kernel they show nothing; the pictures beside them stay.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from pointseg.files import whole_file

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    NotebookClient(notebook, timeout=None, kernel_name="python3", record_timing=False, store_widget_state=False,
                   resources={"metadata": {"path": path.parent}}).execute()
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in ("tags", "nbgrader") if key in cell.metadata}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    with whole_file(path) as part:
        nbformat.write(notebook, part)
    print(f"{path.relative_to(HERE)}: {time.monotonic() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    for argument in sys.argv[1:] or [*sorted(HERE.glob("*.ipynb")), *sorted(HERE.glob("course/source/*/*.ipynb"))]:
        execute(Path(argument).resolve())
