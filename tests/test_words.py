"""Plain words: docstrings begin short, and some private words of earlier versions do not come back (CONTRIBUTING, Words)."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted([*ROOT.glob("mlx_visalign/**/*.py"), *ROOT.glob("convert/**/*.py")])
TEXTS = [*CODE, *ROOT.glob("recipes/*.yaml"), *map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "recipes/README.md"))]
TEXTS += [ROOT / "convert/README.md", ROOT / "tests/benchmarks/README.md"]
LONGEST = 10  # words of a docstring's first line
BANNED = {  # what to say instead
    r"\bfold(s|ed)?\b": "prefix cache",
    r"\btold\b": "reported, said by whom",
    r"foresee|foretell|foretold": "dry run, estimate",
    r"verifier": "scorer, score",
    r"\bpatient\b": "probe",
}


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_public_docstrings_begin_with_a_short_line(path):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, documented) or getattr(node, "name", "").startswith("_"):
            continue
        first = (ast.get_docstring(node) or "").partition("\n")[0]
        assert len(first.split()) <= LONGEST, f"{getattr(node, 'name', 'the module')}: {first}"


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_words_that_nobody_else_understands_do_not_come_back(path):
    text = path.read_text()
    found = {match[0]: instead for word, instead in BANNED.items() for match in re.finditer(word, text, re.I)}
    assert not found, f"say instead: {found}"
