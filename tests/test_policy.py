"""The policy: scores equal answers taken one by one, features are cached exactly, adapters are loaded strictly."""

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from random_policy import random_policy

from mlx_visalign.errors import UserError
from mlx_visalign.generate import Sampling
from mlx_visalign.lora import LoRASettings, adapter_at, adapters
from mlx_visalign.policy import FeatureCache

QUESTIONS = ["Describe this image in detail.", "Is there a red circle in the image?"]


@pytest.fixture(scope="module")
def policy():
    return random_policy()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (28, 28 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return sorted(folder.glob("*.png"))


def test_an_answers_score_is_the_sum_of_its_tokens_scores(policy, paths):
    """score() against the log-softmax along the way of a greedy answer: one token more, its log-probability more."""
    features = policy.image_features(paths[:1])
    prefix = policy.prefill(features, [policy.prompt_ids(QUESTIONS[0])])
    ids = policy.generate(prefix, Sampling(6))[0].ids
    parts = [[ids[: index + 1] for index in range(len(ids))]]
    sums = np.array(policy.score(prefix, parts))[0]
    assert (np.diff(sums) < 0).all()
    for index in range(len(ids) - 1):
        others = [[[*ids[:index], word] for word in (ids[index], 40, 50, 60)]]
        scores = np.array(policy.score(prefix, others))[0]
        assert scores.argmax() == 0
        np.testing.assert_allclose(scores[0], sums[index], atol=1e-4)


def test_ask_equals_asking_one_by_one(policy, paths):
    features = policy.image_features(paths[:2])
    whole = [policy.prompt_ids(question) for question in QUESTIONS]
    at = len(whole[0]) - whole[0][::-1].index(policy.image_token)
    prefix = policy.prefill(features, [whole[0][:at]] * 2)
    together = policy.ask(prefix, [ids[at:] for ids in whole] * 2, Sampling(8))
    for row in range(2):
        for index, ids in enumerate(whole):
            alone = policy.generate(policy.prefill(features[row : row + 1], [ids]), Sampling(8))
            assert together[2 * row + index] == alone[0]


def test_cached_features_are_the_first_ones(policy, paths):
    first = policy.image_features(paths)
    np.testing.assert_array_equal(policy.image_features(paths[::-1]), first[::-1])
    np.testing.assert_array_equal(random_policy(cache_gb=0.0).image_features(paths), first)
    exact = policy.features(mx.stack([policy.pixels(Image.open(path).convert("RGB")) for path in paths]))
    np.testing.assert_allclose(first, exact, rtol=1e-3, atol=1e-3)


def test_the_cache_keeps_to_its_limit():
    cache = FeatureCache(gigabytes=1000e-9)
    for name in "abcde":
        cache.put(name, mx.zeros((4, 16), dtype=mx.float32))  # 256 bytes
    assert list(cache.entries) == ["c", "d", "e"] and cache.size == 768
    cache.get("c")
    cache.put("f", mx.zeros((4, 16)))
    assert list(cache.entries) == ["e", "c", "f"]


def test_adapter_travels_between_policies(tmp_path, paths):
    one = random_policy()
    one.attach(LoRASettings(rank=4), seed=1)
    for index, layer in enumerate(adapters(one.model).values()):
        layer.lora_b = 0.3 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
    one.save_adapter(tmp_path, method="test")
    other = random_policy()
    before = score(other, paths)
    assert other.load_adapter(tmp_path) == 14
    assert score(other, paths) == pytest.approx(score(one, paths), abs=1e-4)
    assert abs(score(other, paths) - before) > 0.1
    with adapter_at(other.model, 0):
        assert score(other, paths) == pytest.approx(before, abs=1e-5)


def test_an_adapter_can_be_trained_on(tmp_path, paths):
    """A loaded adapter is a round; attaching again starts the next one, whose reference is the loaded one."""
    one = random_policy()
    one.attach(LoRASettings(rank=4), seed=1)
    for index, layer in enumerate(adapters(one.model).values()):
        layer.lora_b = 0.3 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
    one.save_adapter(tmp_path)
    other = random_policy()
    other.load_adapter(tmp_path)
    loaded = score(other, paths)
    other.attach(LoRASettings(rank=2), seed=2)
    assert score(other, paths) == pytest.approx(loaded, abs=1e-5)
    with adapter_at(other.model, 0):
        assert score(other, paths) == pytest.approx(score(random_policy(), paths), abs=1e-5)
    with adapter_at(other.model, 1):
        assert score(other, paths) == pytest.approx(loaded, abs=1e-5)


def score(policy, paths):
    prefix = policy.prefill(policy.image_features(paths[:1]), [policy.prompt_ids(QUESTIONS[0])])
    return policy.score(prefix, [[[40, 41, 42, 2]]]).item()


@pytest.mark.parametrize(("change", "message"), [("template", "vicuna_v1"), ("base", "random-0"), ("aspect", "pad")])
def test_an_adapter_of_another_model_is_refused(tmp_path, change, message):
    from dataclasses import replace

    one, other = random_policy(), random_policy()
    one.attach(LoRASettings(rank=2), seed=0)
    one.save_adapter(tmp_path)
    if change == "template":
        other.template = "hf"
    elif change == "base":
        other.base = "another"
    else:
        other.preprocessing = replace(other.preprocessing, aspect="crop")
    with pytest.raises(UserError, match=message):
        other.load_adapter(tmp_path)


def test_an_adapter_whose_names_fit_no_layer_is_refused(tmp_path):
    one = random_policy()
    one.attach(LoRASettings(rank=2), seed=0)
    one.save_adapter(tmp_path)
    file = tmp_path / "adapters.safetensors"
    renamed = {name.replace("layers.1", "layers.7"): array for name, array in mx.load(str(file)).items()}
    mx.eval(renamed)
    mx.save_safetensors(str(file), renamed)
    with pytest.raises(UserError, match="7 adapter tensors fit no layer"):
        random_policy().load_adapter(tmp_path)


def test_answer_takes_a_path_or_a_picture(policy, paths):
    by_path = policy.answer(paths[0], QUESTIONS[0], Sampling(5))
    assert by_path == policy.answer(Image.open(paths[0]).convert("RGB"), QUESTIONS[0], Sampling(5))
