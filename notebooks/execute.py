"""Run notebooks from top to bottom and save them with their outputs.   python notebooks/execute.py [NOTEBOOK ...]

Without arguments all of them, and then the README's picture, a figure of each.  A notebook is saved only if every cell
ran, without a warning.  Widgets and progress bars are not saved: without a kernel they show nothing.
"""

import base64
import io
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from pointseg.report import plot
from pointseg.scans.files import whole_file

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
FIGURES = (-1, 0, 3, 2, 3, 0, 1, 1, 0, 0, 2, 0, 0)  # which figure of notebook 00, 01 .. 12 the README shows


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    NotebookClient(notebook, timeout=None, kernel_name="python3", record_timing=False, store_widget_state=False,
                   resources={"metadata": {"path": path.parent}}).execute()
    if warnings := [o.text for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stderr"]:
        raise RuntimeError(f"{path.name}: not saved, since it warns: {warnings[0]}")
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in ("tags", "nbgrader") if key in cell.metadata}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    with whole_file(path) as part:
        nbformat.write(notebook, part)
    seconds = time.monotonic() - start
    print(f"{path.relative_to(HERE)}: {seconds:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


def contact_sheet(paths: list[Path]) -> plot.Figure:
    """One figure of each notebook, side by side."""
    figure = plot.Figure((15, 8), layout="constrained")
    axes = list(figure.subplots(3, 5).flat)
    for ax in axes:
        ax.axis("off")
    for ax, path, chosen in zip(axes, paths, FIGURES):
        outputs = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]
        png = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})][chosen]
        ax.imshow(Image.open(io.BytesIO(base64.b64decode(png))))
        ax.set_title(path.stem.replace("_", " "), fontsize=11, loc="left")
    return figure


if __name__ == "__main__":
    lessons = sorted(HERE.glob("*.ipynb"))
    for path in sys.argv[1:] or [*lessons, *sorted(HERE.glob("course/source/*/*.ipynb"))]:
        execute(Path(path).resolve())
    if not sys.argv[1:]:
        plot.save(contact_sheet(lessons), HERE / "figures" / "notebooks.png")
