"""Controls: the same pairs or answers, learned from otherwise; each in a folder of its own, done once."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from random_policy import random_policy
from stopping import StopError, stop_at

from mlx_visalign.data.images import open_image
from mlx_visalign.data.questions import make_prompts
from mlx_visalign.data.records import Pair, read_jsonl, write_jsonl
from mlx_visalign.data.training_log import read_metrics
from mlx_visalign.methods import csr, fisao, seva
from mlx_visalign.methods.job import Job
from mlx_visalign.methods.preference_rounds import train_in_rounds
from mlx_visalign.models.adapter_files import read_adapter
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.pipeline.controls import BLANK, controlled, controls_of, own_job, swapped, train_control
from mlx_visalign.runs.run import Run
from mlx_visalign.tiny_world.source import world_mix, world_photos
from mlx_visalign.training.dpo import PreferenceSettings, pair_batch, pair_logps, with_reference
from mlx_visalign.training.length_guard import LengthGuard
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.tolerances import SAME_SUM

SHORT, LONG = "A red circle.", "A red circle and a blue star."
SETTINGS = seva.Settings(
    max_tokens=32, train=PreferenceSettings(batch_size=2, iters=3, learning_rate=2e-3, lora=LoRASettings(rank=2), save_every=1)
)


def pair(number, chosen=LONG, rejected=SHORT):
    return Pair(
        str(number), (f"{number}.png",), "Q?", chosen, rejected, reference_logps={"chosen": -1.0 - number, "rejected": -2.0}
    )


@pytest.fixture
def made(tmp_path):
    """A method's run, as far as pairs about two scenes."""
    photos = world_photos(tmp_path / "run", "unlabelled", 2, 0)
    job = Job(Run(tmp_path / "run"), random_policy(), make_prompts(photos, world_mix(0), 0), seed=0)
    pairs = [
        Pair(prompt.id, (prompt.image,), prompt.prompt, *sides)
        for prompt, sides in zip(job.prompts, [(LONG, SHORT), (SHORT, LONG)], strict=True)
    ]
    scored = with_reference(job.policy, [job.located(one) for one in pairs])
    write_jsonl(
        job.run.folder / "pairs.jsonl",
        [replace(one, reference_logps=s.reference_logps) for one, s in zip(pairs, scored, strict=True)],
    )
    return job


def control(made, name, settings=SETTINGS):
    job = own_job(replace(made, policy=random_policy()), made.run.control(name))
    with job.run:
        train_control(name, job, made.run.folder, seva, settings)
    return job


def test_swapping_turns_the_reference_too():
    assert swapped(pair(3)) == replace(pair(3, SHORT, LONG), reference_logps={"chosen": -2.0, "rejected": -4.0})


def test_a_coin_turns_about_half_of_the_pairs_and_the_same_ones_again():
    pairs = [pair(n) for n in range(200)]
    turned = controlled("random", pairs, seed=1)
    assert 70 < sum(one.chosen == SHORT for one in turned) < 130
    assert turned == controlled("random", pairs, seed=1) != controlled("random", pairs, seed=2)


def test_the_shorter_one_is_preferred_and_equal_lengths_are_left_out():
    found = controlled("shorter", [pair(0), pair(1, SHORT, LONG), pair(2, SHORT, "A white cross.")], seed=0)
    assert [(one.id, one.chosen) for one in found] == [("0", SHORT), ("1", SHORT)]


def test_blind_pairs_see_the_mean_colour_and_have_a_reference_that_saw_it_too(made):
    job = control(made, "blind")
    pixels = np.array(job.policy.pixels(open_image(job.image(BLANK))))
    assert abs(pixels).max() < 0.02  # nothing there, after normalisation
    before, after = (read_jsonl(one.run.folder / "pairs.jsonl", Pair) for one in (made, job))
    assert [(one.chosen, one.rejected) for one in after] == [(one.chosen, one.rejected) for one in before]
    fresh = [job.located(one) for one in after]
    assert {one.images for one in after} == {(BLANK,)}
    logps = np.array(pair_logps(random_policy(), pair_batch(random_policy(), fresh)))
    np.testing.assert_allclose(logps, [[*one.reference_logps.values()] for one in after], atol=SAME_SUM)
    assert abs(logps - [[*one.reference_logps.values()] for one in before]).max() > 1e-3
    assert read_metrics(job.run.metrics)[0]["margin"] == pytest.approx(0, abs=1e-4)  # policy and reference see the same


@pytest.mark.parametrize("name", ["random", "shorter", "blind"])
def test_each_trains_an_adapter_once_in_a_folder_of_its_own(made, name, capsys):
    folder = control(made, name).run.folder
    config, _ = read_adapter(folder / "adapter")
    before = (folder / "adapter" / "adapters.safetensors").read_bytes()
    assert config["method"] == f"control: {name}"
    capsys.readouterr()
    again = control(made, name)
    assert "already done" in capsys.readouterr().err
    assert (again.run.adapter / "adapters.safetensors").read_bytes() == before


def test_a_later_round_is_trained_against_where_the_control_has_got_to(made):
    pairs = read_jsonl(made.run.folder / "pairs.jsonl", Pair)
    write_jsonl(made.run.folder / "pairs-2.jsonl", pairs)
    job = control(made, "shorter", csr.Settings(rounds=2, train=SETTINGS.train))
    assert read_adapter(job.run.adapter)[0]["round_ranks"] == [2, 2]
    assert read_metrics(job.run.round(2) / "metrics.jsonl")[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert [one.reference_logps for one in read_jsonl(job.run.folder / "pairs-2.jsonl", Pair)] != [
        one.reference_logps for one in controlled("shorter", pairs, 0)
    ]


@pytest.mark.parametrize("name", ["random", "blind"])
def test_with_mdpo_a_control_scores_its_own_damaged_images(made, name):
    job = control(made, name, replace(SETTINGS, train=replace(SETTINGS.train, loss_type="mdpo")))
    first = read_metrics(job.run.metrics)[0]
    assert first["train_loss"] == pytest.approx(3 * np.log(2), abs=1e-4)
    assert first["corrupted_chosen_reward"] == pytest.approx(0, abs=1e-4)


def test_one_that_was_stopped_goes_on_to_the_same_adapter(made, tmp_path):
    whole = control(made, "blind").run.adapter / "adapters.safetensors"
    moved = replace(made, run=Run(shutil.copytree(made.run.folder, tmp_path / "moved", ignore=lambda *_: ["controls"])))
    with pytest.raises(StopError):
        control(replace(moved, on_metrics=stop_at(2)), "blind")
    assert (control(moved, "blind").run.adapter / "adapters.safetensors").read_bytes() == whole.read_bytes()


def test_without_pairs_there_is_only_the_blind_control(made, tmp_path):
    assert controls_of(SETTINGS) == ("random", "shorter", "blind", "best")
    assert controls_of(fisao.Settings()) == ("blind", "best")
    with pytest.raises(UserError, match="needs pairs"):
        train_control("shorter", own_job(made, tmp_path / "c"), tmp_path, fisao, fisao.Settings())


def test_a_control_of_pairs_is_trained_to_its_end_however_short_its_answers(made, monkeypatch):
    def short(guard, update):
        guard.share = 0.02
        return guard.share

    monkeypatch.setattr(LengthGuard, "measure", short)
    assert read_metrics(control(made, "shorter").run.metrics)[-1]["answer_length"] == 0.02
    pairs = [made.located(one) for one in read_jsonl(made.run.folder / "pairs.jsonl", Pair)]
    with pytest.raises(UserError, match="below min_share"):  # unlike the method itself
        train_in_rounds(made, SETTINGS, lambda one: pairs, "seva")


def test_blind_rollouts_are_measured_however_far_they_stray(made, tmp_path):
    taken = []
    method = SimpleNamespace(train=lambda job, settings: taken.append((job.blank, settings.train)))
    job = own_job(made, tmp_path / "blind")
    train_control("blind", job, made.run.folder, method, fisao.Settings())
    [(blank, train)] = taken
    assert blank == tmp_path / "blind" / BLANK
    assert (train.max_kl, train.min_share) == (1e9, 0.0)
    assert replace(train, max_kl=5.0, min_share=0.6) == fisao.Settings().train
