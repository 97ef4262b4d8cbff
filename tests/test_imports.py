"""Who may import whom, read off the syntax trees: a module imports only what stands before it in TOP_TO_BOTTOM."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_TO_BOTTOM = """
    errors pointers stopping quiet words arguments fonts fields flags links files keys progress metrics provenance precision
    marks records rows config losses ppo images pair_formats photos augment vocabulary mentions template
    models attention vlm rendering chat_template model_folder
    fold logps weights lora convert generate tree sentences policy positions stream probe
    checkpoint train_settings enough train pairing preference ppo_settings experience rollout reinforcement footprint workload
    scorers judging world prompts evals evaluate calibration verifier
    plots sheet page curves tree_sheet reward_pictures before_after control_words report figures_page
    model_card upload stage
    speed memory_plan patient checks doctor
    run alignment best_of measuring controls recipe asking foresight report_page pipeline compare preview
    methods training_options model_options options results training_commands model_commands commands
    cli entry api __init__ __main__
"""
ORDER = TOP_TO_BOTTOM.split()
SIBLINGS_MAY_MEET = {"augment", "models", "vlm", "world", "evals", "convert"}
CONVERTERS = {"llava", "llava_original", "clip", "peft"}  # share tables and files, and never import each other
ONE_DOOR = {r"mlx_vlm\b": "vlm", r"mlx\.optimizers\b": "train", r"importlib(\.import_module)?$": "cli"}

FILES = [path for folder in ("mlx_visalign", "convert") for path in sorted((ROOT / folder).rglob("*.py"))]


def unit(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "convert" and parts[1] != "__main__" else parts[1]


def imported(path: Path) -> set[str]:
    """The dotted names a file imports, anywhere in it; `from a import b` counts as a.b."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_above(path):
    own = unit(path)
    assert own in ORDER, f"give {own} its place in TOP_TO_BOTTOM"
    for name in sorted(imported(path)):
        if name.startswith("mlx_visalign."):
            other = name.split(".")[1]
            allowed = ORDER[: ORDER.index(own)] + [own] * (own in SIBLINGS_MAY_MEET)
            assert other in allowed, f"{own} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_converters_do_not_import_converters(path):
    if unit(path) == "convert" and path.stem in CONVERTERS:
        assert not [name for name in imported(path) if re.match(rf"mlx_visalign\.convert\.({'|'.join(CONVERTERS)})\b", name)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_some_libraries_have_one_door(path):
    for name in imported(path):
        for library, door in ONE_DOOR.items():
            assert door in (unit(path), path.stem) or not re.match(library, name), f"only {door} may import {name}"
