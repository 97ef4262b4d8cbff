"""recipes/quickstart.ipynb: a sound notebook without outputs, whose cells run in order, as they would without Jupyter."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "recipes/quickstart.ipynb"
MOST = 4096  # bytes of a cell's outputs

# Runs the cells in one namespace. What a cell ends with is shown as a notebook would, by its _repr_html_ or _repr_png_.
RUNNER = """
import ast, json, sys
sys.modules["IPython"] = None
names = {}
for number, cell in enumerate(json.load(open(sys.argv[1]))["cells"]):
    if cell["cell_type"] != "code":
        continue
    tree, last = ast.parse("".join(cell["source"])), None
    if isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    exec(compile(tree, f"cell {number}", "exec"), names)
    value = None if last is None else eval(compile(last, f"cell {number}", "eval"), names)
    for kind in ("_repr_html_", "_repr_png_"):
        if hasattr(value, kind):
            print("shown", kind, len(getattr(value, kind)()))
"""


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text())


def test_it_is_a_notebook_of_format_4(notebook):
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | code
        assert cell["cell_type"] in ("code", "markdown") and all(isinstance(line, str) for line in cell["source"])
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("[a-zA-Z0-9_-]{1,64}", one) for one in ids)


def test_it_is_small_and_of_no_one_machine(notebook):
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(len(json.dumps(cell["outputs"])) <= MOST for cell in codes)
    assert not re.search(r"""["'\s(](/|~/|[A-Z]:\\\\)(?!/)\w""", NOTEBOOK.read_text())  # an absolute path


def test_its_code_compiles(notebook):
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), cell["id"], "exec")


@pytest.mark.slow
def test_it_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(NOTEBOOK)], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True
    )
    shown = re.findall(r"^shown (\w+) (\d+)$", done.stdout, re.M)
    assert [kind for kind, _ in shown] == ["_repr_png_", "_repr_html_", "_repr_png_"]
    assert all(int(size) > 500 for _, size in shown)
    first, last = map(float, re.search(r"made up: ([\d.]+)% -> ([\d.]+)%", done.stdout).groups())
    assert last < first
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart"]
