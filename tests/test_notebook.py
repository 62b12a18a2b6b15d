"""The tour runs as it stands, in little, and what it is stored with is what it showed."""

import pathlib
import re

import nbclient
import nbformat

TOUR = pathlib.Path(__file__).parent.parent / "experiments" / "notebooks" / "tour.ipynb"
LITTLE = {
    "range(1500)": "range(180)",
    '"train.num_steps": 400': '"train.num_steps": 20',
    '"eval.every": 100': '"eval.every": 20',
}


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell):
    """Return the kinds of what a cell shows besides printed text."""
    return [sorted(output.data) for output in cell.outputs if output.output_type in ("display_data", "execute_result")]


def test_the_tour_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND")  # a notebook shows its plots
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # as the stored one had
    tour = nbformat.read(TOUR, 4)
    for old, new in LITTLE.items():
        assert sum(cell.source.count(old) for cell in tour.cells) == 1
        for cell in tour.cells:
            cell.source = cell.source.replace(old, new)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(tour, timeout=600, kernel_name="python3", resources=resources).execute()
    stored = code(nbformat.read(TOUR, 4))
    assert [shown(cell) for cell in code(tour)] == [shown(cell) for cell in stored]
    assert [path.name for path in tmp_path.iterdir()] == ["tour"]


def test_it_is_stored_with_what_it_showed():
    stored = code(nbformat.read(TOUR, 4))
    assert [cell.execution_count for cell in stored] == list(range(1, len(stored) + 1)), "run once, from top to bottom"
    printed = "".join(output.text for cell in stored for output in cell.outputs if output.output_type == "stream")
    assert re.search(r"epoch 19 of 19\.7 \(step 400 of 400\)", printed)
    assert TOUR.stat().st_size < 1_000_000
