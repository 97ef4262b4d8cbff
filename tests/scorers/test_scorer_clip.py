"""The CLIP scorer: what it computes, that every image and text is read once, and when LLaVA's tower is CLIP's."""

import logging

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from random_policy import random_policy

from mlx_visalign.inference.policy import load
from mlx_visalign.models.clip import _unit, load_clip
from mlx_visalign.models.families.family import Family
from mlx_visalign.scorers.clip import TINY_CLIP, CLIPScorer, clip_scorer
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.language import sentence
from mlx_visalign.tiny_world.scenes import scene, split
from mlx_visalign.utils.errors import UserError


@pytest.fixture(scope="module")
def policy():
    return load("tiny")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "wide.png"
    scenes = [draw(scene(seed)) for seed in (2_000_000, 2_000_001)]
    Image.fromarray(np.concatenate(scenes, axis=1)).save(path)  # wide, so that padding and cropping differ
    return path


def test_the_specs_cosines(policy, image, monkeypatch):
    """T1, with a CLIP whose vectors are given."""
    scorer = clip_scorer(None, "crop", policy)
    texts = iter([[2.0, 1.0, 2.0], [-2.0, 1.0, -1.0]])
    monkeypatch.setattr(scorer.clip, "encode_image", lambda pixels: _unit(mx.array([[1.0, 2.0, 2.0]])))
    monkeypatch.setattr(scorer.clip, "encode_text", lambda ids: _unit(mx.array([next(texts)])))
    assert scorer([image] * 2, ["a", "b"]) == pytest.approx([88.888889, -27.216553], abs=1e-5)


def test_a_shared_tower_gives_the_scores_of_a_separate_one(policy, image):
    shared = clip_scorer(None, "pad", policy)
    separate = CLIPScorer(load_clip(TINY_CLIP), shared.tokenizer, shared.preprocessing, "separate")
    texts = [sentence(thing) for some in split("validation", 6) for thing in some.things]
    assert shared.policy is policy and len(shared.clip.vision_model.encoder.layers) == 1
    np.testing.assert_allclose(shared([image] * len(texts), texts), separate([image] * len(texts), texts), atol=0.05)


def test_what_is_shared_is_run_once(policy, image, monkeypatch):
    fresh, seen = load("tiny"), []
    scorer = clip_scorer(None, "pad", fresh)
    states = Family.states

    def counted(self, model, pixels):
        seen.append(len(pixels))
        return states(self, model, pixels)

    monkeypatch.setattr(Family, "states", counted)
    fresh.image_features([image])
    for text in ("A cat.", "A dog."):
        scorer([image] * 2, [text, "A red circle."])
    fresh.image_features([image])
    assert seen == [1]


def test_another_view_or_another_tower_is_not_shared(image):
    other = load("tiny")
    assert clip_scorer(None, "crop", other).policy is None
    weight = other.model.vision_tower.vision_model.encoder.layers[0].mlp.fc1.weight
    weight[0, 0] = weight[0, 0] + 0.01
    assert clip_scorer(None, "pad", other).policy is None


def test_a_quantised_tower_is_not_shared():
    import mlx.nn as nn

    other = load("tiny")
    nn.quantize(other.model.vision_tower, group_size=64, bits=8, class_predicate=lambda _, layer: isinstance(layer, nn.Linear))
    assert clip_scorer(None, "pad", other).policy is None


def test_crop_is_clips_own_preprocessing(policy, image):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil.from_pretrained(TINY_CLIP)(images=Image.open(image), return_tensors="np")["pixel_values"][0]
    ours = clip_scorer(None, "crop", policy).preprocessing(Image.open(image))
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), atol=1e-6)


def test_a_score_does_not_depend_on_its_company(policy, image):
    texts = [sentence(thing) for some in split("validation", 30) for thing in some.things]
    together = clip_scorer(None, "pad", policy)([image] * len(texts), texts)
    for start in (0, 3, 17):
        assert clip_scorer(None, "pad", policy)([image], texts[start : start + 1]) == together[start : start + 1]


def test_a_text_is_read_once(policy, image, monkeypatch):
    scorer, read = clip_scorer(None, "pad", policy), []
    encode = scorer.clip.encode_text
    monkeypatch.setattr(scorer.clip, "encode_text", lambda ids: read.append(ids.shape) or encode(ids))
    scorer([image] * 3, ["A cat.", "A dog.", "A cat."])
    scorer([image], ["A dog."])
    assert [rows for rows, _ in read] == [1, 1]
    assert scorer([], []) == []


def test_a_long_text_is_judged_by_its_beginning_and_its_end_token(policy, image, caplog):
    scorer = clip_scorer(None, "pad", policy)
    long = "a red circle and " * 20
    with caplog.at_level(logging.WARNING):
        ids = scorer._ids(long)
    assert len(ids) == 32 and ids[-1] == scorer.tokenizer.eos_token_id and ids.count(ids[-1]) == 1
    assert scorer.cut == 1 and not caplog.records  # transformers' own warning is about the wrong length
    scorer([image] * 2, [long, "short"])
    assert scorer.cut == 2


def test_a_real_model_needs_a_clip():
    with pytest.raises(UserError, match="Which CLIP"):
        clip_scorer(None, "pad", random_policy())


def test_a_folder_without_a_tokenizer_says_so(policy, tmp_path):
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((TINY_CLIP / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer"):
        clip_scorer(str(tmp_path), "pad", policy)
