"""FiSAO: labels and rewards; a whole run on the tiny model, stopped and resumed, on float32, bf16 and 4-bit."""

import json
import re
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from random_policy import tokenizer
from small_bases import bf16, four_bit
from stopping import StopError, stop_at

from mlx_visalign.data.questions import make_prompts
from mlx_visalign.data.records import Prompt, read_jsonl
from mlx_visalign.data.training_log import read_metrics
from mlx_visalign.inference.policy import load
from mlx_visalign.methods import fisao
from mlx_visalign.methods.fisao.calibration import Calibration, Scored, read_labels
from mlx_visalign.methods.fisao.object_rewards import ObjectReward, ObjectScorer, RewardSettings, yes_probabilities
from mlx_visalign.methods.fisao.token_mentions import Reader
from mlx_visalign.methods.job import Job
from mlx_visalign.models.decoder import decoder_of
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.runs.run import Run
from mlx_visalign.tiny_world.scenes import scene
from mlx_visalign.tiny_world.source import world_mix, world_photos
from mlx_visalign.training.config import PPOSettings
from mlx_visalign.training.trajectory import Rollout
from mlx_visalign.utils.errors import UserError

SETTINGS = fisao.Settings(
    phrase="a {}",
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
    """A made-up scorer that knows the scene, and likes long texts a little."""
    types = [set(map(str, scene(int(re.findall(r"\d+", Path(image).name)[0])).types)) for image in images]
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
    scorer = ObjectScorer("made up", lambda images, texts: scores, "{}")
    reward = ObjectReward(reader, scorer, Path, calibration, settings, truth)
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


def test_debiasing_takes_off_a_words_own_level():
    calls = []

    def score(images, texts):
        calls.append(len(images))
        return [len(text) + int(Path(image).stem) for image, text in zip(images, texts, strict=True)]

    scorer = ObjectScorer("made up", score, "a {}", tuple(Path(f"{n}.png") for n in (1, 2, 3)))
    assert scorer([Path("5.png"), Path("6.png")], ["cat", "zebra"]) == [5 - 2, 6 - 2]
    assert scorer([Path("7.png")], ["cat"]) == [5] and calls == [2, 3, 3, 1]


def test_labels_from_a_list(tmp_path):
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"b.png": ["red circle"], "z.png": ["blue star"]}))
    assert read_labels(str(file), ["images/a.png", "images/b.png"], WORLD) == {"images/b.png": {"red circle"}}
    with pytest.raises(UserError, match=r"no labels for any of these images: a.png"):
        read_labels(str(file), ["a.png"], WORLD)
    file.write_text(json.dumps({"a.png": ["unicorn"]}))
    with pytest.raises(UserError, match="unicorn"):
        read_labels(str(file), ["a.png"], WORLD)


def test_how_sure_the_policy_is(whole):
    """p(yes) from the shared reading of the image, against the first token of each question asked alone."""
    policy = load("tiny")
    [prompt, *_] = whole.prompts
    path = whole.image(prompt.image)
    names = ["red circle", "blue star", "white cross"]
    found = yes_probabilities(policy, path, names)
    for name, yes in zip(names, found, strict=True):
        prefix = policy.prefill(policy.image_features([path]), [policy.prompt_ids(f"Is there a {name} in the image?")])
        logits = decoder_of(policy.model).head(prefix.state)[0]
        words = mx.array([policy.response_ids(word)[0] for word in ("Yes", "No")])
        assert yes == pytest.approx(mx.softmax(logits[words])[0].item(), abs=1e-4)
    assert policy.response_ids("Yes.")[0] == words[0].item()


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One undisturbed run."""
    one = job(tmp_path_factory.mktemp("whole"))
    fisao.train(one, SETTINGS)
    one.run.close()
    return one


def test_a_run_leaves_what_it_did(whole):
    scored = read_jsonl(whole.run.folder / "calibration.jsonl", Scored)
    types = {f"images/scene-{n}.png": set(map(str, scene(n).types)) for n in range(1_000_000, 1_000_012)}
    assert len(scored) > 12 and all(row.correct == (row.canonical in types[row.image]) for row in scored)
    saved = json.loads((whole.run.folder / "calibration.json").read_text())
    assert saved["calibration"]["labels"] == "given" and saved["calibration"]["auc"] == 1
    assert saved["scoring"]["scorer"] == "made up" and saved["scoring"]["labels"] == "tiny-world"
    rollouts = [read_jsonl(file, Rollout) for file in sorted((whole.run.folder / "rollouts").glob("*.jsonl"))]
    assert [len(rows) for rows in rollouts] == [4, 4]
    rows = read_metrics(whole.run.metrics)
    assert rows[0]["ratio_off"] == 0 and rows[0]["kl"] == 0 and rows[2]["ratio_off"] > 0
    assert rows[4]["kl"] != 0 and rows[4]["value_loss"] > 0


def test_the_pictures_of_a_run(whole):
    one = replace(whole, held_out=whole.prompts[:2])
    fisao.picture(one, SETTINGS)
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
    for name in ("adapter/adapters.safetensors", "rollouts/0000001.jsonl", "calibration.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole.run.folder / name).read_bytes(), name


def test_the_tiny_models_own_clip_is_the_default_scorer(tmp_path):
    one = job(tmp_path, score=None)
    scorer = fisao.make_scorer(one, SETTINGS)
    found = fisao.measure(one, SETTINGS, scorer)
    assert found.auc > 0.95 and scorer.name.endswith("pad")


def test_other_rewards_in_the_same_folder_are_refused(whole):
    again = replace(whole, run=Run(whole.run.folder), policy=load("tiny"))
    with pytest.raises(UserError, match="reward"):
        fisao.train(again, replace(SETTINGS, reward=RewardSettings("band")))
    with pytest.raises(UserError, match="phrase"):
        fisao.train(again, replace(SETTINGS, phrase="{}"))
    again.run.close()


def test_without_labels_the_models_own_word_counts_and_is_called_so(tmp_path, capsys):
    one = job(tmp_path)
    try:
        settings = replace(SETTINGS, labels=None, min_mentions=1)
        found = fisao.measure(one, settings, fisao.make_scorer(one, settings))
    except UserError as error:  # twelve scenes may hold no mention that the model itself denies
        assert "hallucinated mentions, and needs" in str(error)
    else:
        assert found.labels == "pseudo" and "PSEUDO" in capsys.readouterr().err
    rows = read_jsonl(tmp_path / "calibration.jsonl", Scored)
    assert {row.correct for row in rows} >= {True}


def test_what_cannot_work_is_said_before_anything_is_done(tmp_path):
    with pytest.raises(UserError, match="none of the prompts asks for a description"):
        one = job(tmp_path)
        fisao.train(replace(one, prompts=[p for p in one.prompts if p.kind == "exists"]), SETTINGS)
    with pytest.raises(UserError, match="labels"):
        fisao.Settings(reward=RewardSettings("oracle"))
    with pytest.raises(UserError, match=r"\{\}"):
        fisao.Settings(phrase="a photo")
    with pytest.raises(UserError, match="repeat"):
        RewardSettings(repeat=0.5)
    stages = SETTINGS.workload([Prompt("a", "a.png", "?", "describe")] * 12).stages
    assert [(stage.total, stage.sampled) for stage in stages] == [(12, 12 * 48), (6, 6 * 48)]


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
