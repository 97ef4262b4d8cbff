"""LLaVA-OneVision with one tile an image against transformers, and through prefix cache, LoRA, policy and loading."""

import json
from functools import cache
from types import SimpleNamespace

import make_onevision
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden_llava import assert_logits
from golden_onevision import GOLDEN, embeddings, our_logits
from mlx.utils import tree_flatten
from PIL import Image
from random_onevision import (
    CONFIG,
    IMAGE_TOKENS,
    MEAN,
    SIDE,
    STD,
    policy_config,
    random_onevision,
    random_policy,
    tokenizer,
)

from mlx_visalign.data.images import Preprocessing
from mlx_visalign.inference import prefix_cache
from mlx_visalign.inference.policy import load
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.models import families
from mlx_visalign.models.decoder import decoder_of
from mlx_visalign.models.loading import quantize_language_model
from mlx_visalign.models.lora import LoRASettings, adapters
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.tolerances import PARITY, SAME_SUM

QUESTIONS = ["Describe this image in detail.", "Is there a red triangle in the image?"]
model = cache(random_onevision)
policy = cache(random_policy)


@pytest.mark.parametrize("head", ["untied", "tied"])
def test_logits_equal_transformers(head):
    """From the same images and token ids, rope_theta 500 from rope_parameters; transformers read each row alone."""
    assert_logits(our_logits(model(head == "tied")), [GOLDEN[f"{head}{row}"] for row in range(2)])


@pytest.mark.reference
@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_transformers_live(tied):
    assert_logits(our_logits(model(tied)), make_onevision.logits(tied))


@pytest.mark.reference
def test_logits_equal_transformers_of_a_batch():
    assert_logits(our_logits(model()), make_onevision.logits_together())


@pytest.mark.reference
@pytest.mark.parametrize(("sizes", "in_a_prompt", "tokens"), [([(45, 45)], 1, 9 + 36 + 6), ([(44, 44)] * 2, 2, 10)])
def test_what_is_not_done(sizes, in_a_prompt, tokens):
    """transformers' own layouts for a larger square (2 x 2 tiles) and for two images in a prompt (no tile)."""
    found = make_onevision.image_features(sizes, in_a_prompt)
    assert [len(features) for features in found] == [tokens] * len(sizes)


def test_rope_theta_and_newlines_matter():
    """What the golden logits would not show if it made no difference."""
    plain = our_logits(model())[0]
    assert np.abs(our_logits(random_onevision(rope_parameters={"rope_theta": 1e6}))[0] - plain).max() > 0.01
    changed = random_onevision()
    changed.image_newline = -changed.image_newline
    assert np.abs(our_logits(changed)[0] - plain).max() > 0.01


def test_an_image_is_its_patches_then_the_tile_by_rows():
    patches = mx.random.normal((2, SIDE * SIDE, 64))
    embeds, found = model().multi_modal_projector(patches), np.array(families.of(model()).project(model(), patches))
    assert found.shape == (2, IMAGE_TOKENS, 64) and families.of(model()).image_tokens(model()) == IMAGE_TOKENS
    np.testing.assert_array_equal(found[:, : SIDE * SIDE], embeds)
    tile = found[:, SIDE * SIDE :].reshape(2, SIDE, SIDE + 1, 64)
    np.testing.assert_array_equal(tile[:, :, :SIDE], np.array(embeds).reshape(2, SIDE, SIDE, 64))
    assert (tile[:, :, SIDE] == np.array(model().image_newline)).all()


def test_a_square_of_the_towers_size_is_one_tile_in_transformers():
    """At the real size and with the real grids: the tile has the image's own pixels, and 1485 tokens are expected."""
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor as Processor

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8))
    sides = range(384, 2305, 384)
    process = make_onevision.image_processor(384, [[height, width] for height in sides for width in sides][::-1])
    tiles = process(images=image, return_tensors="np")["pixel_values"][0]
    ours = np.array(Preprocessing(384, MEAN, STD, "pad")(image)).transpose(2, 0, 1)
    np.testing.assert_array_equal(tiles, [ours, ours])

    expected = SimpleNamespace(image_processor=process, num_image_tokens=729, vision_aspect_ratio="anyres_max_9")
    expected._get_unpadded_features = lambda *sizes: Processor._get_unpadded_features(expected, *sizes)
    vision = CONFIG["vision_config"] | {"image_size": 384}
    built = families.build_model(CONFIG | {"vision_config": vision, "image_grid_pinpoints": None})
    assert Processor._get_number_of_features(expected, 384, 384, 384, 384) == 1485 == families.of(built).image_tokens(built)


@pytest.mark.parametrize("size", [(300, 200), (123, 400), (50, 50)])
def test_padding_equals_transformers_own(size):
    """transformers pads to a square where a prompt has several images."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    theirs = make_onevision.image_processor(384)(images=[[image, image]], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(Preprocessing(384, MEAN, STD, "pad")(image), theirs[0, 0].transpose(1, 2, 0))


def test_fold_equals_the_models_own_forward():
    """Two answers after one prompt, against mlx-vlm's Qwen2 on each whole row."""
    decoder, answers = decoder_of(model()), [[30, 31, 32], [40, 2]]
    prefix = prefix_cache.prefill(decoder, *embeddings(model(), make_onevision.ROWS[:1]))
    states, _ = prefix_cache.extend(decoder, prefix.branch(2), *prefix_cache.right_pad(answers))
    for row, answer in enumerate(answers):
        embeds, _ = embeddings(model(), [make_onevision.ROWS[0] + answer])
        plain = model().language_model(None, inputs_embeds=embeds).logits[0, -len(answer) :]
        np.testing.assert_allclose(decoder.head(states[row, : len(answer)]), plain, atol=PARITY)


def images():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (60, 50, 3), dtype=np.uint8)) for _ in QUESTIONS]


def read(policy, rows):
    """The prefix of these rows' images and questions."""
    pixels = mx.stack([policy.pixels(images()[row]) for row in rows])
    return policy.prefill(policy.features(pixels), [policy.prompt_ids(QUESTIONS[row]) for row in rows])


def test_a_batch_equals_single_rows():
    answers = [[policy().response_ids(text) for text in ("Is there", "a")] for _ in QUESTIONS]
    together = np.array(policy().score(read(policy(), [0, 1]), answers))
    generated = policy().generate(read(policy(), [0, 1]), Sampling(6))
    for row in range(2):
        np.testing.assert_allclose(together[row], policy().score(read(policy(), [row]), answers[:1])[0], atol=SAME_SUM)
        assert [generated[row]] == policy().generate(read(policy(), [row]), Sampling(6))


def test_lora_learns_in_every_layer_of_the_language_model_only():
    learner = random_policy()
    learner.attach(LoRASettings(rank=4), seed=1)
    names = set(adapters(learner.model))
    assert len(names) == 2 * 7 and all(name.startswith("language_model.model.layers.") for name in names)
    for index, layer in enumerate(adapters(learner.model).values()):
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
    answers = [[learner.response_ids("Is there a"), learner.response_ids("image")]]

    def margin():
        scores = learner.score(read(learner, [0]), answers)
        return -nn.log_sigmoid(scores[0, 0] - scores[0, 1])

    _, gradients = nn.value_and_grad(learner.model, margin)()
    found = dict(tree_flatten(gradients))
    assert found.keys() == {f"{name}.lora_{part}" for name in names for part in "ab"}
    assert all(mx.abs(gradient).max() > 1e-6 for gradient in found.values())


def save_folder(folder, **config):
    config = policy_config() | config
    tokenizer().save_pretrained(folder)
    preprocessor = {"size": {"height": 44, "width": 44}, "crop_size": None, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(policy().model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def test_a_folder_loads_with_onevisions_own_template(tmp_path):
    save_folder(tmp_path)
    loaded = load(tmp_path)
    assert (loaded.template, loaded.preprocessing.aspect, loaded.image_tokens) == ("onevision", "pad", IMAGE_TOKENS)
    assert loaded.tokenizer.decode([loaded.end]) == "<|im_end|>"
    answer = loaded.answer(images()[0], QUESTIONS[0], Sampling(6))
    assert answer == policy().answer(images()[0], QUESTIONS[0], Sampling(6)) != ""


def test_cropping_is_refused_with_the_reason(tmp_path):
    save_folder(tmp_path)
    with pytest.raises(UserError, match=r"OneVision takes aspect 'pad' only.*AnyRes"):
        load(tmp_path, aspect="crop")


def test_a_quantised_model_with_a_tied_head_says_so():
    tied = random_policy()
    tied.model = random_onevision(True)
    assert tied.dtype == "float32"
    quantize_language_model(tied.model, 4, 32)
    assert tied.dtype == "4-bit"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_grid_pinpoints": [[44, 88], [88, 44]]}, "no 44x44.*several tiles"),
        ({"image_grid_pinpoints": 44}, "cannot be understood"),
        ({"vision_feature_select_strategy": "default"}, "only 'full'"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
        ({"vision_config": CONFIG["vision_config"] | {"hidden_act": "gelu"}}, "vision_config.hidden_act 'gelu'"),
        ({"text_config": CONFIG["text_config"] | {"use_sliding_window": True}}, "use_sliding_window"),
        ({"text_config": CONFIG["text_config"] | {"rope_parameters": {"rope_type": "yarn"}}}, "rope_type 'yarn'"),
        ({"model_type": "llava_next"}, "got 'llava_next'"),
    ],
)
def test_what_would_be_computed_wrong_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        families.build_model(CONFIG | change)
