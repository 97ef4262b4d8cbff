"""The recipe of the tiny world, cut down to two updates a stage: what is learned from, and that it repeats and resumes."""

import json
from dataclasses import replace
from itertools import count

import mlx.core as mx
import numpy as np
import pytest

from mlx_visalign.data.prompt_template import prompt_ids
from mlx_visalign.tiny_world import pretrain, pretrain_clip, pretrain_llava
from mlx_visalign.tiny_world.scenes import TYPES, split
from mlx_visalign.tiny_world.tokenizer import train_clip_tokenizer, train_llava_tokenizer


@pytest.fixture
def short(monkeypatch):
    for stage in (pretrain_clip, pretrain_llava):
        monkeypatch.setattr(stage, "SETTINGS", replace(stage.SETTINGS, iters=2, save_every=1))
        monkeypatch.setattr(stage, "BATCH", 4)
    monkeypatch.setattr(pretrain, "CLIP_SCENES", 12)
    monkeypatch.setattr(pretrain, "VALIDATION_SCENES", 12)


def test_clip_is_trained_on_exact_labels(short):
    scenes, tokenizer = list(split("pretraining", 12)), train_clip_tokenizer()
    source = pretrain_clip.Batches(scenes, tokenizer, seed=0)
    batch = source.next()
    assert batch.pixels.shape == (4, 48, 48, 3)
    present = np.array(batch.phrase_truth[:, : len(TYPES)]).sum(axis=1)
    chosen = np.random.default_rng((0, 0)).choice(12, 4, replace=False)
    assert present.tolist() == [len(scenes[index].types) for index in chosen]
    assert batch.claim_truth.shape == (4, 4)


def test_only_answers_count_and_they_end(short):
    scenes, tokenizer = list(split("pretraining", 12)), train_llava_tokenizer()
    source = pretrain_llava.Conversations(scenes, mx.zeros((12, 36, 128)), tokenizer, seed=0)
    batch = source.next()
    assert (len(batch.descriptions.real), len(batch.questions.real)) == (4, 4 * pretrain_llava.QUESTIONS)
    for turns in (batch.descriptions, batch.questions):
        for ids, real, answer in zip(np.array(turns.ids), turns.real, np.array(turns.answer), strict=True):
            assert ids[answer][-1] == tokenizer.eos_token_id
            assert not answer[~real].any()
            assert tokenizer.decode(ids[real & ~answer]).endswith("ASSISTANT:")
            assert tokenizer.decode(ids[answer][:1]).isalpha()


def test_the_shared_prefix_and_the_rest_make_the_prompt():
    tokenizer = train_llava_tokenizer()
    whole = prompt_ids(tokenizer, "vicuna_v1", "Is it?", 36)
    assert pretrain_llava.before_question(tokenizer) + pretrain_llava.after_image(tokenizer, "Is it?") == whole


def test_a_seed_gives_one_world_whether_or_not_it_was_stopped(short, tmp_path, monkeypatch):
    pretrain.train_world(tmp_path / "straight", seed=3)

    calls, mean_loss = count(), pretrain_llava._mean_loss

    def stop_in_the_second_update(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return mean_loss(*arguments)

    monkeypatch.setattr(pretrain_llava, "_mean_loss", stop_in_the_second_update)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train_world(tmp_path / "stopped", seed=3)
    pretrain.train_world(tmp_path / "stopped", seed=3)

    straight, stopped = (json.loads((tmp_path / name / "base.json").read_text()) for name in ("straight", "stopped"))
    assert straight == stopped
    pretrain.train_world(tmp_path / "other", seed=4)
    assert json.loads((tmp_path / "other" / "base.json").read_text())["llava"] != straight["llava"]
