"""The policy: scores equal answers taken one by one, features are cached exactly, adapters are loaded strictly."""

import json

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from random_policy import random_policy

from mlx_visalign.inference.policy import FeatureCache
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.models.lora import LoRASettings, adapter_at, adapters
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.tolerances import PARITY, SAME_SUM

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
        np.testing.assert_allclose(scores[0], sums[index], atol=SAME_SUM)


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
    one = filled_policy()
    one.save_adapter(tmp_path, method="test")
    other = random_policy()
    before = score(other, paths)
    assert other.load_adapter(tmp_path) == 14
    assert score(other, paths) == pytest.approx(score(one, paths), abs=SAME_SUM)
    assert abs(score(other, paths) - before) > 0.1
    with adapter_at(other.model, 0):
        assert score(other, paths) == pytest.approx(before, abs=PARITY)


def test_an_adapter_can_be_trained_on(tmp_path, paths):
    """A loaded adapter is a round; attaching again starts the next one, whose reference is the loaded one."""
    one = filled_policy()
    one.save_adapter(tmp_path)
    other = random_policy()
    other.load_adapter(tmp_path)
    loaded = score(other, paths)
    other.attach(LoRASettings(rank=2), seed=2)
    assert score(other, paths) == pytest.approx(loaded, abs=PARITY)
    with adapter_at(other.model, 0):
        assert score(other, paths) == pytest.approx(score(random_policy(), paths), abs=PARITY)
    with adapter_at(other.model, 1):
        assert score(other, paths) == pytest.approx(loaded, abs=PARITY)


def score(policy, paths):
    prefix = policy.prefill(policy.image_features(paths[:1]), [policy.prompt_ids(QUESTIONS[0])])
    return policy.score(prefix, [[[40, 41, 42, 2]]]).item()


@pytest.mark.parametrize(
    ("change", "message"), [("template", "vicuna_v1"), ("base", "trained on another model"), ("aspect", "pad")]
)
def test_an_adapter_of_another_model_is_refused(tmp_path, change, message):
    from dataclasses import replace

    one, other = random_policy(), random_policy()
    one.attach(LoRASettings(rank=2), seed=0)
    one.save_adapter(tmp_path)
    if change == "template":
        other.template = "hf"
    elif change == "base":
        other.base = other.source = "another"
    else:
        other.preprocessing = replace(other.preprocessing, aspect="crop")
    with pytest.raises(UserError, match=message):
        other.load_adapter(tmp_path)


def test_another_precision_of_the_same_source_gets_a_note(tmp_path, capsys):
    one = filled_policy()
    one.source = "the original"
    one.save_adapter(tmp_path)
    other = random_policy()
    other.base, other.source = "random-0 in 4 bits", "the original"
    assert other.load_adapter(tmp_path) == 14
    assert "another precision of the same source" in capsys.readouterr().err


def test_an_adapter_without_a_source_fits_what_was_converted_from_its_base(tmp_path, capsys):
    """Adapters trained straight on the source know only its own fingerprint."""
    filled_policy().save_adapter(tmp_path)
    edit(tmp_path, lambda config: config.pop("source_fingerprint"))
    other = random_policy()
    other.base, other.source = "random-0 in 4 bits", "random-0"
    assert other.load_adapter(tmp_path) == 14
    assert "another precision of the same source" in capsys.readouterr().err


def test_loading_says_what_was_bound_and_what_it_changes(tmp_path, paths, capsys):
    filled_policy().save_adapter(tmp_path)
    other = random_policy()
    before = other.first_logits("Describe this image in detail.")
    mx.eval(before)
    other.load_adapter(tmp_path)
    change = mx.abs(other.first_logits("Describe this image in detail.") - before).max().item()
    said = capsys.readouterr().err
    assert "28 of 28 tensors bound, to 14 of 14 linear layers" in said
    assert f"changes logits by up to {change:.2g} " in said and change > 0.1


def test_an_adapter_that_changes_nothing_is_warned_of(tmp_path, capsys):
    one = random_policy()
    one.attach(LoRASettings(rank=2), seed=0)
    one.save_adapter(tmp_path)
    random_policy().load_adapter(tmp_path)
    assert "changes no logit (by 0.0 on a fixed prompt)" in capsys.readouterr().err


def test_the_first_logits_are_those_of_the_first_answered_word(policy, paths):
    image = Image.open(paths[0]).convert("RGB")
    prefix = policy.prefill(policy.features(policy.pixels(image)[None]), [policy.prompt_ids(QUESTIONS[0])])
    first = policy.generate(prefix, Sampling(1))[0].ids[0]
    assert policy.first_logits(QUESTIONS[0], image).argmax().item() == first
    assert not mx.array_equal(policy.first_logits(QUESTIONS[0], image), policy.first_logits(QUESTIONS[0]))


def test_an_adapter_for_some_layers_is_loaded_and_trained_on(tmp_path, paths):
    filled_policy().save_adapter(tmp_path)
    some = rewrite(tmp_path, lambda name: name if "q_proj" in name or "v_proj" in name else None)
    other = random_policy()
    assert other.load_adapter(tmp_path) == some == 4
    loaded = score(other, paths)
    assert abs(loaded - score(random_policy(), paths)) > 0.01
    other.attach(LoRASettings(rank=2), seed=2)
    with adapter_at(other.model, 1):
        assert score(other, paths) == pytest.approx(loaded, abs=PARITY)
    with adapter_at(other.model, 0):
        assert score(other, paths) == pytest.approx(score(random_policy(), paths), abs=PARITY)


def test_an_adapter_whose_names_fit_no_layer_is_refused(tmp_path):
    filled_policy().save_adapter(tmp_path)
    rewrite(tmp_path, lambda name: name.replace("layers.1", "layers.7"))
    message = (
        r"7 of 14 layers fit no layer:\n +unknown name '\S+layers.7.mlp.down_proj'. Did you mean '\S+layers.1.mlp.down_proj'"
    )
    with pytest.raises(UserError, match=message):
        random_policy().load_adapter(tmp_path)


def test_an_adapter_that_names_no_layers_must_be_for_all_of_them(tmp_path):
    filled_policy().save_adapter(tmp_path)
    rewrite(tmp_path, lambda name: name if "layers.0" in name else None)
    edit(tmp_path, lambda config: config["lora_parameters"].pop("keys"))
    with pytest.raises(UserError, match="7 of the model's 14 linear layers have no tensors"):
        random_policy().load_adapter(tmp_path)


def filled_policy():
    """A policy with an adapter that changes its answers."""
    policy = random_policy()
    policy.attach(LoRASettings(rank=2), seed=0)
    for index, layer in enumerate(adapters(policy.model).values()):
        layer.lora_b = 0.3 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
    return policy


def rewrite(folder, rename):
    """Rename the adapter's layers, or leave out those that become None; returns how many are left."""
    file = folder / "adapters.safetensors"
    kept = {rename(name): array for name, array in mx.load(str(file)).items() if rename(name) is not None}
    mx.eval(kept)
    mx.save_safetensors(str(file), kept)
    keys = sorted({name.rsplit(".lora_", 1)[0] for name in kept})
    edit(folder, lambda config: config["lora_parameters"].update(keys=keys))
    return len(keys)


def edit(folder, change):
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def test_answer_takes_a_path_or_a_picture(policy, paths):
    by_path = policy.answer(paths[0], QUESTIONS[0], Sampling(5))
    assert by_path == policy.answer(Image.open(paths[0]).convert("RGB"), QUESTIONS[0], Sampling(5))
