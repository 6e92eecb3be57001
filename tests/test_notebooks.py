"""The notebooks run from top to bottom, and say what their text says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
EXECUTE = """
import sys
import nbclient, nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.fixture(scope="module")
def figure_10c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The notebook as executed, with a tenth of its requests."""
    folder = tmp_path_factory.mktemp("notebook")
    text = (NOTEBOOKS / "figure_10c.ipynb").read_text(encoding="utf-8")
    for count in ("4000", "2000"):
        assert count in text
        text = text.replace(f": {count}", f": {count[:-1]}")
    short, executed = folder / "short.ipynb", folder / "executed.ipynb"
    short.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(short), str(executed)],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    notebook: dict[str, Any] = json.loads(executed.read_text(encoding="utf-8"))
    return notebook


def printed(notebook: dict[str, Any]) -> str:
    outputs = [out for cell in notebook["cells"] for out in cell.get("outputs", ())]
    return "".join(
        text if isinstance(text, str) else "".join(text) for text in (o.get("text", "") for o in outputs)
    )


def test_the_studys_figure_comes_out_of_three_runs(figure_10c: dict[str, Any]) -> None:
    text = printed(figure_10c)
    for name, n in (("fixed_50ms", 400), ("fixed_500ms", 200), ("random_0_1s", 200)):
        assert f"{n} of {n} ok" in next(line for line in text.splitlines() if line.startswith(name))
    assert "The loads were NOT equal" in text
    assert "impossible: below the loaded-idle floor whatever was cached" in text
    figures = [
        o for c in figure_10c["cells"] for o in c.get("outputs", ()) if "image/svg+xml" in o.get("data", {})
    ]
    assert len(figures) == 2


def test_the_notebook_in_the_repository_was_executed_and_names_no_place() -> None:
    notebook = json.loads((NOTEBOOKS / "figure_10c.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = json.dumps([cell["outputs"] for cell in cells])
    assert "Traceback" not in outputs and "/tmp" not in outputs and "/home" not in outputs
