"""A method in one file outside the package: found, run, resumed, checked and reported like those inside."""

import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from small_runs import TRAIN

import mlx_visalign
from mlx_visalign import methods
from mlx_visalign.cli.main import main
from mlx_visalign.utils.errors import UserError

WARM = Path(__file__).parents[1] / "assets" / "warm.py"
COMMAND = [
    "run",
    "--method-file",
    str(WARM),
    "--images",
    "tiny-world",
    "--max-images",
    "12",
    "--set",
    f"train={json.dumps(TRAIN)}",
]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(methods, "_from_files", {})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    (folder.parent / "recipe.yaml").write_text("scenes: 2\n")
    assert main([*COMMAND, "-c", str(folder.parent / "recipe.yaml"), "--controls", "--output", str(folder)]) == 0
    return folder


def test_it_gets_all_that_other_methods_get(finished):
    report = json.loads((finished / "report.json").read_text())
    assert report["settings"]["method"] == "warm" and report["held_out_pairs"]["pairs"] >= 1
    assert len(report["controls"]) == 4  # a coin, the shorter, blank images, best of eight
    assert json.loads((finished / "doctor.json").read_text())
    assert "Warm" in (finished / "report.html").read_text() and (finished / "adapter/adapters.safetensors").exists()


def test_it_goes_on_where_it_stopped(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for name in ("report.json", "checkpoints/step-0000012", "controls"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copy(finished.parent / "recipe.yaml", tmp_path)
    assert main([*COMMAND, "-c", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]) == 0
    same = (run / "adapter/adapters.safetensors" for run in (finished, tmp_path / "run"))
    assert len({file.read_bytes() for file in same}) == 1


def test_an_edited_method_does_not_go_on_with_what_it_was(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/report.json").unlink()
    shutil.copy(finished.parent / "recipe.yaml", tmp_path)
    (tmp_path / "warm.py").write_text(WARM.read_text() + "# edited\n")
    command = [str(tmp_path / "warm.py") if word == str(WARM) else word for word in COMMAND]
    assert main([*command, "-c", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]) == 2
    assert "The setting method_code is version" in capsys.readouterr().err


def test_the_dry_run_counts_its_work(capsys):
    assert main([*COMMAND, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["updates_at_most"] == 12 and told["answer_tokens_at_most"] == 2 * 48 * told["prompts_answered"]["answering"]


def test_python_takes_the_file_too(finished, tmp_path):
    settings = {"train": TRAIN | {"iters": 2}}
    made = mlx_visalign.align(
        WARM, images="tiny-world", max_images=4, eval_images=1, settings=settings, output=tmp_path / "run"
    )
    assert made["settings"]["method"] == "warm"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("seva.py", "", "a method named seva exists already"),
        ("mine.py", "1 / 0", "mine.py cannot be imported .ZeroDivisionError: division by zero"),
        ("mine.py", "def (", "mine.py cannot be imported .SyntaxError"),
        ("mine.py", "Settings = sample = 1", "mine.py is not a method: it lacks pairs. A method needs Settings, and"),
        ("mine.txt", "", "A method must be a Python file"),
        ("gone.py", None, "must be a Python file, and .*gone.py is not"),
    ],
)
def test_what_is_no_method_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        methods.add_file(tmp_path / name)
    assert "mine" not in methods.names()


def test_rounds_of_ones_own_must_be_those_of_the_driver(tmp_path):
    """Any others would be a setting that does nothing."""
    text = WARM.read_text().replace("    max_tokens: int = 48", "    max_tokens: int = 48\n    rounds: int = 3")
    (tmp_path / "many.py").write_text(text)
    methods.add_file(tmp_path / "many.py")
    with pytest.raises(UserError, match=r"The method many has rounds, so its Settings must extend .*RoundSettings"):
        methods.find("many")


def test_installed_packages_may_bring_methods(monkeypatch):
    def points(group):
        assert group == "mlx_visalign.methods"
        return [
            EntryPoint("warm", "warm", group),
            EntryPoint("lost", "no_such_module", group),
            EntryPoint("odd", "json", group),
        ]

    monkeypatch.syspath_prepend(str(WARM.parent))
    monkeypatch.setattr(methods, "entry_points", points)
    assert methods.find("warm").Settings().max_tokens == 48
    assert methods.descriptions()["warm"] == "from the package warm"
    assert methods.recipe_of("warm").stem == "own" and methods.recipe_of("seva").stem == "seva"
    with pytest.raises(UserError, match="method lost cannot be imported"):
        methods.find("lost")
    with pytest.raises(UserError, match="method odd is not a method: it lacks Settings, sample, pairs"):
        methods.find("odd")
    with pytest.raises(UserError, match=r"no method .wram.\. Did you mean .warm."):
        methods.find("wram")
