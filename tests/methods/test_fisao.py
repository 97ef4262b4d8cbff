"""FiSAO: labels and rewards; a whole run on the tiny model, stopped and resumed, on float32, bf16 and 4-bit."""

import json
import re
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from made_judges import made_judge
from random_policy import random_policy, tokenizer
from small_bases import bf16, four_bit
from stopping import StopError, stop_at

from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.data.questions import make_prompts
from mlx_visalign.data.records import Prompt, read_jsonl
from mlx_visalign.data.training_log import read_metrics
from mlx_visalign.inference.policy import load
from mlx_visalign.methods import fisao
from mlx_visalign.methods.fisao.calibration import Calibration, read_labels
from mlx_visalign.methods.fisao.object_rewards import ObjectReward, RewardSettings
from mlx_visalign.methods.fisao.token_mentions import Reader
from mlx_visalign.methods.job import Job
from mlx_visalign.methods.judge import JudgeSettings, make_judge
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.runs.run import Run
from mlx_visalign.scorers.trust import JudgedImage, JudgedObject
from mlx_visalign.tiny_world.scenes import scene
from mlx_visalign.tiny_world.source import world_mix, world_photos
from mlx_visalign.training.config import PPOSettings
from mlx_visalign.training.trajectory import Rollout
from mlx_visalign.utils.errors import UserError

SETTINGS = fisao.Settings(
    judge=JudgeSettings(samples=2, check_images=6, gate="warn"),
    labels="tiny-world",
    min_mentions=2,
    reward=RewardSettings("affine"),
    max_tokens=48,
    batch=12,
    train=PPOSettings(
        rollout_batch_size=4,
        batch_size=2,
        grad_accumulation_steps=1,
        num_ppo_epochs=2,
        iters=6,
        learning_rate=1e-3,
        lora=LoRASettings(rank=4),
        save_every=2,
    ),
)
WORLD = world_mix(0).vocabulary


def knowing(images, texts):
    """A made-up scorer that knows the scene, and likes long texts a little; a blank image has nothing."""
    numbers = [re.findall(r"\d+", Path(image).name) for image in images]
    types = [set(map(str, scene(int(found[0])).types)) if found else set() for found in numbers]
    return [0.2 * (text.removeprefix("a ") in there) + 0.001 * len(text) for there, text in zip(types, texts, strict=True)]


def job(folder, change=lambda policy: policy, on_metrics=None, score=knowing):
    prompts = make_prompts(world_photos(folder, "unlabelled", 12, 0), world_mix(1), 5)
    policy = change(load("tiny"))
    return Job(Run(folder), policy, prompts, 5, on_metrics=on_metrics, vocabulary=WORLD, score=score, score_name="made up")


# -- rewards ----------------------------------------------------------------------------------------------------------


def rewarded(text, settings, scores, truth=None):
    """(phrase, reward) of each mention in a text about one image, the scores given."""
    reader = Reader(tokenizer(), WORLD)
    calibration = Calibration("given", 0.3, 0.1, 0.1, 0.1, 60, 60, 0.9)
    reward = ObjectReward(reader, lambda images, objects: scores, Path, calibration, settings, truth)
    ids = reader.tokenizer(text, add_special_tokens=False).input_ids
    [found] = reward([Prompt("a", "a.png", "?")], [ids])
    for part in found:
        last = reader.tokenizer.convert_ids_to_tokens(ids[part.last])
        assert text[part.start : part.end].endswith(last.strip("▁"))
    return [(part.phrase, pytest.approx(part.reward)) for part in found]


TEXT = "A small red circle at the top left. A large blue star at the top. A small red circle at the centre."


def test_a_second_mention_earns_nothing_and_may_cost():
    affine = RewardSettings("affine")
    assert rewarded(TEXT, affine, [0.25, 0.15, 0.25]) == [("red circle", 0.5), ("blue star", -0.5), ("red circle", 0)]
    assert rewarded(TEXT, affine, [0.15, 0.15, 0.15])[2] == ("red circle", -0.5)
    assert rewarded(TEXT, replace(affine, repeat=-1.0), [0.25, 0.15, 0.25])[2] == ("red circle", -1)


def test_praise_weighs_what_is_right_alone():
    assert rewarded(TEXT, RewardSettings("affine", praise=1.5), [0.25, 0.15, 0.25])[:2] == [
        ("red circle", 0.75),
        ("blue star", -0.5),
    ]


def test_the_oracle_needs_labels_of_the_image():
    assert rewarded(TEXT, RewardSettings("oracle"), [0, 0, 0], {"a.png": {"blue star"}})[:2] == [
        ("red circle", -1),
        ("blue star", 1),
    ]
    with pytest.raises(UserError, match=r"a\.png has none"):
        rewarded(TEXT, RewardSettings("oracle"), [0, 0, 0], {"b.png": {"blue star"}})


def test_what_is_scored_is_the_objects_own_name():
    """Whatever it is called in the answer; and a scorer is not asked about nothing."""
    calls = []

    def score(images, objects):
        calls.append((images, objects))
        return [0.3] * len(objects)

    vocabulary = Vocabulary.from_rows([{"canonical": "dog", "phrases": ["dog", "puppy"]}], "mine")
    calibration = Calibration("given", 0.3, 0.1, 0.1, 0.1, 60, 60, 0.9)
    reader = Reader(tokenizer(), vocabulary)
    reward = ObjectReward(reader, score, Path("run").joinpath, calibration, RewardSettings("affine"))
    ids = [reader.tokenizer(text, add_special_tokens=False).input_ids for text in ("Two puppies and a dog.", "Nothing.")]
    [[puppy, dog], nothing] = reward([Prompt("a", "a.png", "?"), Prompt("b", "b.png", "?")], ids)
    assert calls == [([Path("run/a.png")] * 2, ["dog"] * 2)] and nothing == ()
    assert [(part.phrase, part.reward) for part in (puppy, dog)] == [("puppy", pytest.approx(1)), ("dog", 0)]
    assert reward([Prompt("b", "b.png", "?")], ids[1:]) == [()] and len(calls) == 1


def test_labels_from_a_list(tmp_path):
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"b.png": ["red circle"], "z.png": ["blue star"]}))
    assert read_labels(str(file), ["images/a.png", "images/b.png"], WORLD) == {"images/b.png": {"red circle"}}
    with pytest.raises(UserError, match=r"no labels for any of these images: a.png"):
        read_labels(str(file), ["a.png"], WORLD)
    file.write_text(json.dumps({"a.png": ["unicorn"]}))
    with pytest.raises(UserError, match="unicorn"):
        read_labels(str(file), ["a.png"], WORLD)


# -- calibration ------------------------------------------------------------------------------------------------------


def judged(number, *objects):
    """An answer about image `number`; its objects as (name, place, log-odds of the model's own yes)."""
    found = [JudgedObject(name, place, {"clip": 0.5, "self_check": yes}, {}, {}) for name, place, yes in objects]
    return JudgedImage(f"q{number}", f"images/{number}.png", "?", 9, tuple(found))


CHECKED = [
    judged(1, ("red circle", 0.1, 3.0), ("blue star", 0.6, -2.0), ("white cross", None, -9.0)),
    judged(2, ("blue star", 0.0, 0.84), ("red circle", 0.3, 0.85), ("white cross", 0.9, -0.85)),
    judged(3),
]


@pytest.fixture
def checked(tmp_path):
    """A job, and a judge of checked answers that has scored nothing yet."""
    scores = {"red circle": 3.0, "blue star": 1.0, "white cross": -1.0}

    def score(images, objects):
        return [scores[name] + int(image.stem) for image, name in zip(images, objects, strict=True)]

    return Job(Run(tmp_path), random_policy(), [], 0, vocabulary=WORLD), made_judge(score, checked=CHECKED)


def test_pseudo_labels_are_the_models_own_yes_and_no(checked, capsys):
    """Where it is sure: from log-odds of ln(7/3) = 0.847 on. What only sampled answers name counts too."""
    settings = replace(SETTINGS, labels=None, min_mentions=2)
    assert [(row.id, row.object, row.score, row.correct) for row in fisao.mentions(checked[0], settings, checked[1])] == [
        ("q1", "red circle", 4.0, True),
        ("q1", "blue star", 2.0, False),
        ("q1", "white cross", 0.0, False),
        ("q2", "blue star", 3.0, None),
        ("q2", "red circle", 5.0, True),
        ("q2", "white cross", 1.0, False),
    ]
    found = fisao.measure(*swap(checked, settings))
    assert (found.labels, found.correct_mean, found.hallucinated_mean, found.auc) == ("pseudo", 4.5, 1.0, 1)
    assert "PSEUDO" in capsys.readouterr().err
    saved = json.loads((checked[0].run.folder / "calibration.json").read_text())
    assert saved["calibration"]["labels"] == "pseudo" and saved["scoring"] == {"scorer": "made up", "labels": None}


def swap(checked, settings):
    return checked[0], settings, checked[1]


def test_given_labels_leave_out_images_that_have_none(checked, tmp_path):
    """And the model's own yes and no do not count where labels are given."""
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"2.png": ["blue star", "white cross"], "9.png": ["red circle"]}))
    settings = replace(SETTINGS, labels=str(file))
    assert [(row.image, row.object, row.correct) for row in fisao.mentions(checked[0], settings, checked[1])] == [
        ("images/2.png", "blue star", True),
        ("images/2.png", "red circle", False),
        ("images/2.png", "white cross", True),
    ]
    with pytest.raises(UserError, match="found 2 and 1"):
        fisao.measure(*swap(checked, settings))


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One undisturbed run."""
    one = job(tmp_path_factory.mktemp("whole"))
    fisao.train(one, SETTINGS)
    one.run.close()
    return one


def test_a_run_leaves_what_it_did(whole):
    with Run(whole.run.folder) as run:
        again = replace(whole, run=run, policy=load("tiny"))
        scored = fisao.mentions(again, SETTINGS, make_judge(again, SETTINGS))
    types = {f"images/scene-{n}.png": set(map(str, scene(n).types)) for n in range(1_000_000, 1_000_006)}
    assert len(scored) > 12 and all(row.correct == (row.object in types[row.image]) for row in scored)
    saved = json.loads((whole.run.folder / "calibration.json").read_text())
    assert saved["calibration"]["labels"] == "given" and saved["calibration"]["auc"] > 0.9
    assert saved["scoring"]["scorer"] == "made up" and saved["scoring"]["labels"] == "tiny-world"
    rollouts = [read_jsonl(file, Rollout) for file in sorted((whole.run.folder / "rollouts").glob("*.jsonl"))]
    assert [len(rows) for rows in rollouts] == [4, 4]
    rows = read_metrics(whole.run.metrics)
    assert rows[0]["ratio_off"] == 0 and rows[0]["kl"] == 0 and rows[2]["ratio_off"] > 0
    assert rows[4]["kl"] != 0 and rows[4]["value_loss"] > 0


def test_the_pictures_of_a_run(whole):
    with Run(whole.run.folder) as run:
        fisao.picture(replace(whole, run=run, held_out=whole.prompts[:2]), SETTINGS)
    found = (whole.run.plots / "fisao.html").read_text()
    assert found.count("<b>before</b>") == found.count("<b>after</b>") == 2 and "Reconstructed" in found
    assert {file.name for file in whole.run.plots.glob("*.png")} == {"fisao.png", "calibration.png"}


def test_the_critic_stays_out_of_the_adapter(whole):
    adapter = mx.load(str(whole.run.adapter / "adapters.safetensors"))
    assert len(adapter) == 2 * 7 * 3 and all(".lora_" in name for name in adapter)
    about = json.loads((whole.run.adapter / "adapter_config.json").read_text())
    assert about["method"] == "fisao (reconstructed)" and about["calibration_labels"] == "given"
    [checkpoint, *_] = sorted((whole.run.folder / "checkpoints").glob("step-*"), reverse=True)
    critic = mx.load(str(checkpoint / "value.safetensors"))
    assert mx.abs(critic["linear.weight"]).max() > 0


def test_a_stopped_run_ends_with_the_same_adapter(whole, tmp_path):
    """Stopped after a checkpoint in the middle of a rollout."""
    first = job(tmp_path, on_metrics=stop_at(3))
    with pytest.raises(StopError):
        fisao.train(first, SETTINGS)
    first.run.close()
    again = job(tmp_path)
    fisao.train(again, SETTINGS)
    again.run.close()
    for name in ("adapter/adapters.safetensors", "rollouts/0000001.jsonl", "judge.jsonl", "calibration.json"):
        assert (tmp_path / name).read_bytes() == (whole.run.folder / name).read_bytes(), name


def test_the_tiny_models_own_clip_is_the_default_scorer(tmp_path):
    one, settings = job(tmp_path, score=None), replace(SETTINGS, judge=replace(SETTINGS.judge, kind="clip", check_images=12))
    with one.run:
        judge = make_judge(one, settings)
        assert judge.name["scorer"].endswith("pad") and fisao.measure(one, settings, judge).auc > 0.95


def test_other_rewards_in_the_same_folder_are_refused(whole):
    again = replace(whole, run=Run(whole.run.folder), policy=load("tiny"))
    with pytest.raises(UserError, match="reward"):
        fisao.train(again, replace(SETTINGS, reward=RewardSettings("band")))
    with pytest.raises(UserError, match="phrase"):
        fisao.train(again, replace(SETTINGS, judge=replace(SETTINGS.judge, phrase="{}")))
    again.run.close()


def test_what_cannot_work_is_said_before_anything_is_done(tmp_path):
    """Before the judge samples answers, too: they may take hours."""
    one = job(tmp_path)
    with pytest.raises(UserError, match="none of the prompts asks for a description"):
        fisao.train(replace(one, prompts=[p for p in one.prompts if p.kind == "exists"]), SETTINGS)
    with pytest.raises(UserError, match="no labels for any of these images"):
        (tmp_path / "labels.json").write_text(json.dumps({"other.png": ["red circle"]}))
        fisao.train(one, replace(SETTINGS, labels=str(tmp_path / "labels.json")))
    assert not list(tmp_path.glob("*.jsonl"))
    with pytest.raises(UserError, match="labels"):
        fisao.Settings(reward=RewardSettings("oracle"))
    with pytest.raises(UserError, match=r"\{\}"):
        JudgeSettings(phrase="a photo")
    with pytest.raises(UserError, match="repeat"):
        RewardSettings(repeat=0.5)
    stages = SETTINGS.workload([Prompt("a", "a.png", "?", "describe")] * 12).stages
    assert [(stage.total, stage.sampled) for stage in stages] == [(12, 12 * 2 * 48), (6, 6 * 48), (6, 6 * 48)]


@pytest.mark.parametrize(("change", "dtype", "critic"), [(bf16, "bfloat16", "linear"), (four_bit, "4-bit", "none")])
def test_a_short_run_on_a_small_base(tmp_path, change, dtype, critic):
    """Rollout and update run the same code on the same batches, so the ratio is exactly 1 here too."""
    one = job(tmp_path, change)
    assert one.policy.dtype == dtype
    fisao.train(one, replace(SETTINGS, train=replace(SETTINGS.train, critic=critic, iters=3, grad_checkpoint=True)))
    one.run.close()
    rows = read_metrics(one.run.metrics)
    assert rows[0]["ratio_off"] == 0 and all(np.isfinite(row["train_loss"]) for row in rows)
    assert ("value_loss" in rows[0]) == (critic == "linear")
    adapter = mx.load(str(one.run.adapter / "adapters.safetensors"))
    assert all(array.dtype == mx.float32 for array in adapter.values())
    assert any(mx.abs(array).max() > 0 for name, array in adapter.items() if name.endswith("lora_b"))
