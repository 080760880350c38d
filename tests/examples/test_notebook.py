"""The notebook runs from its first cell to its last, and shows what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "mnist_journey.ipynb"


@pytest.fixture(scope="module")
def source():
    return nbformat.read(NOTEBOOK, as_version=4)


# In a process of its own, since the client leaves sockets open. No folder of kernels is looked at, so that it is the
# interpreter that runs the tests which runs the cells, not one that was installed for the user.
EXECUTE = """
import sys, nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

source, target = sys.argv[1:]
manager = AsyncKernelManager(
    kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), transport="ipc", ip="kernel"
)
client = NotebookClient(nbformat.read(source, as_version=4), km=manager, timeout=200)
nbformat.write(client.execute(), target)
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after a run, and the folder that it ran in; an error in any cell fails the test."""
    folder = tmp_path_factory.mktemp("notebook")
    line = [sys.executable, "-c", EXECUTE, str(NOTEBOOK), "done.ipynb"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return nbformat.read(folder / "done.ipynb", as_version=4), folder


def views(notebook, begin):
    """The HTML that cells show whose text begins with ``begin``, progress bars left out."""
    cells = [c for c in notebook.cells if c.cell_type == "code" and begin in c.source]
    return [o.data.get("text/html", "") for c in cells for o in c.outputs if o.output_type == "execute_result"]


def test_it_is_small_and_holds_no_outputs(source):
    assert NOTEBOOK.stat().st_size < 20_000
    for cell in source.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert 'DATASET = "digits"' in source.cells[1].source


def test_every_step_has_a_view(executed):
    notebook, folder = executed
    assert "ana (240)" in views(notebook, "fedloom.split")[0]
    assert "macro avg" in views(notebook, "trained =")[0]
    assert "The members share a start" in views(notebook, "fedloom.merge")[0]
    assert "central" in views(notebook, "comparison =")[0]
    assert "no shared start" in views(notebook, "fresh_start=True")[0]
    assert "round 3" in views(notebook, "fedloom.next_round")[0]
    assert "after rounds" in views(notebook, "result.global_model")[0]
    assert (folder / "comparison" / "report.html").is_file()


def test_nothing_is_printed_beside_the_views(executed):
    notebook, _ = executed
    said = [o.text for c in notebook.cells for o in c.get("outputs", ()) if o.output_type == "stream"]
    assert said == []
