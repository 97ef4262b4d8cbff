"""A run's folder: one process at a time, stages that know their settings, and what is reused of another run."""

import contextlib
import json
import subprocess
import sys

import pytest
import yaml

from mlx_visalign.runs.run import Run
from mlx_visalign.utils.errors import UserError

ITEMS = ["a", "b", "c"]


def upper(items):
    return [{"text": item.upper(), "tokens": 1} for item in items]


def never(items):
    raise AssertionError("this work was to be taken over, not done")


def stage(run, work=upper, items=ITEMS, name="upper", **settings):
    return run.stage(name, items, work, settings=settings, batch=2, title="Writing")


def test_start_writes_what_is_done_and_with_what(tmp_path):
    with Run(tmp_path / "new" / "run") as run:
        run.start({"method": "seva", "rate": 1e-7, "steps": (500, 800)})
    assert yaml.safe_load(run.config.read_text()) == {"method": "seva", "rate": 1e-7, "steps": [500, 800]}
    versions = json.loads(run.versions.read_text())
    assert {"python", "platform", "mlx", "mlx-vlm"} <= versions.keys()


def test_a_finished_stage_is_read_and_not_made_again(tmp_path):
    rows = [{"text": "A", "tokens": 1}, {"text": "B", "tokens": 1}, {"text": "C", "tokens": 1}]
    with Run(tmp_path) as run:
        assert stage(run, seed=1) == rows
    with Run(tmp_path) as run:
        assert stage(run, work=never, seed=1) == rows


def test_other_settings_are_an_error_that_names_them_and_the_file(tmp_path):
    with Run(tmp_path) as run:
        stage(run, seed=1)
        with pytest.raises(UserError, match=r"setting seed is 2 now, but .*upper\.settings\.json was written with 1"):
            stage(run, seed=2)
        with pytest.raises(UserError, match=r"setting temperature is 0\.7 now, but .* was written with not set"):
            stage(run, seed=1, temperature=0.7)


def test_other_items_are_an_error(tmp_path):
    with Run(tmp_path) as run:
        stage(run)
        with pytest.raises(UserError, match=r"upper\.settings\.json was written with different inputs \(3 then, 4 now\)"):
            stage(run, items=[*ITEMS, "d"])


def test_other_settings_are_no_error_before_the_first_row(tmp_path):
    with Run(tmp_path) as run:
        (tmp_path / "upper.settings.json").write_text('{"seed": 1}')
        assert len(stage(run, seed=2)) == 3


def test_two_stages_do_not_know_of_each_other(tmp_path):
    with Run(tmp_path) as run:
        assert stage(run, name="one", seed=1) == stage(run, name="two", seed=2)


def test_a_stage_of_another_run_is_taken_where_its_settings_agree(tmp_path, capsys):
    with Run(tmp_path / "old") as run:
        rows = stage(run, name="responses", seed=1)
        stage(run, name="pairs", beta=0.1)
    with Run(tmp_path / "new", reuse=tmp_path / "old") as run:
        assert stage(run, work=never, name="responses", seed=1) == rows
        stage(run, name="pairs", beta=0.2)
        stage(run, name="scored")
    told = capsys.readouterr().err
    assert "responses: reused from" in told
    assert "pairs: not reused, because beta is 0.2 here and 0.1 in" in told
    assert "scored.jsonl does not exist" in told
    with Run(tmp_path / "new") as run:
        assert stage(run, work=never, name="responses", seed=1) == rows


def test_a_run_to_reuse_must_be_there(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        Run(tmp_path, reuse=tmp_path / "nowhere")


HOLD = "import sys; from mlx_visalign.runs.run import Run; run = Run(sys.argv[1]); run.start({}); print(flush=True); input()"


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(UserError, match="Another process is using"):
        stage(Run(tmp_path))
    holder.kill()
    holder.communicate()
    assert len(stage(Run(tmp_path))) == 3


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be written"):
        stage(Run(tmp_path / "file" / "run"))


def test_ctrl_c_tells_the_command_that_goes_on(tmp_path, capsys):
    def press(items):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Run(tmp_path, command="visalign run seva --images photos") as run:
        stage(run, work=press)
    assert "to resume, run:\n  visalign run seva --images photos" in capsys.readouterr().err


# -- death ----------------------------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from mlx_visalign.runs.run import Run
with Run(sys.argv[1]) as run, run.working("the training"):
    run.stage("made", [1], lambda items: [{}], settings={}, batch=1, title="making")
    if sys.argv[2] == "stage":
        run.stage("lost", [1], lambda items: os.kill(os.getpid(), signal.SIGKILL), settings={}, batch=1, title="losing")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("where", "place"), [("stage", "the stage lost"), ("training", "the training")])
def test_after_a_death_the_folder_tells_where_it_was(tmp_path, where, place):
    died = subprocess.run([sys.executable, "-c", DYING, str(tmp_path), where], capture_output=True, check=False)
    assert died.returncode == -9
    with Run(tmp_path) as run:
        assert run.died_in == place
    with Run(tmp_path) as run:
        assert run.died_in is None  # it is told once


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, None])
def test_whatever_ends_with_a_word_is_no_death(tmp_path, error):
    with contextlib.suppress(KeyboardInterrupt, UserError), Run(tmp_path) as run, run.working("the training"):
        if error:
            raise error("stop")
    with Run(tmp_path) as run:
        assert run.died_in is None
