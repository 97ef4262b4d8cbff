"""What holds for every family of models: those of this package, and one in a file outside it.

A family is one file with a tiny config; its row here comes by itself. What is its own, such as transformers' figures, has a
test file beside these (tests/models/test_llava.py, tests/models/test_llava_onevision.py).
"""

import json
import math
import shutil
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import small_runs
from mlx.utils import tree_flatten
from PIL import Image
from random_family import policy_of, save_images, save_model
from safetensors.numpy import load_file, save_file

import mlx_visalign
from mlx_visalign.convert.cli import main
from mlx_visalign.convert.layouts.llava_config import complete
from mlx_visalign.data.records import Pair
from mlx_visalign.inference.logprobs import token_logps
from mlx_visalign.inference.policy import TINY, load
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.models import families
from mlx_visalign.models.decoder import fitted, merge, plain_logits
from mlx_visalign.models.lora import LoRASettings, adapters
from mlx_visalign.preflight.doctor import examine
from mlx_visalign.preflight.memory import shape_of
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import split
from mlx_visalign.training.dpo import PreferenceSettings, pair_batch, preference_loss, with_reference
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.tolerances import SAME_SUM

STUB = Path(__file__).parents[1] / "assets" / "stub_family.py"
NAMES = [*families.names(), "panorama"]
QUESTIONS = ["Is there a red triangle in the image?", "Describe this image in detail.", "Is there a red triangle in the image?"]
ANSWERS = [["Is there", "a red"], ["image", "in the image"], ["Describe this", "a"]]
SIZES = [(40, 40), (30, 90), (70, 30), (200, 100), (100, 200)]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(families, "_registered", {})
    assert families.add_file(STUB) == "panorama"


@pytest.fixture(params=NAMES)
def family(request):
    return families.find(request.param)


policy = cache(policy_of)  # read only; who changes one makes it


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("images"))


def scores(policy, images, rows=(0, 1, 2)):
    """Both answers' log-probabilities for some rows, as training reads them."""
    features = policy.image_features([images[row] for row in rows])
    prefix = policy.prefill(features, [policy.prompt_ids(QUESTIONS[row]) for row in rows])
    return policy.score(prefix, [[policy.response_ids(text) for text in ANSWERS[row]] for row in rows])


def parameters_of(model):
    return {name: array.shape for name, array in tree_flatten(model.parameters())}


# -- the config and the weights ------------------------------------------------------------------------------------------


def test_it_is_found_by_its_model_type(family):
    assert families.find(family.tiny["model_type"]) is family and family.model_type in families.names()
    assert families.of(families.build_model(family.tiny)) is family


def test_a_complete_config_tells_every_parameter(family):
    config = complete(family.tiny)
    assert families.parameters(config) == parameters_of(families.build_model(family.tiny))
    assert complete(config) == config


def test_what_mlx_would_compute_otherwise_is_refused(family):
    """By loading and by the converter, in the whole config and in both sections."""
    sections = {"": family, "text_config": family.text, "vision_config": family.vision}
    changes = [(section, name) for section, kind in sections.items() for name in kind.only]
    assert len(changes) >= 3
    for section, name in changes:
        change = {name: "another"}
        config = family.tiny | ({section: family.tiny[section] | change} if section else change)
        for read in (families.build_model, complete):
            with pytest.raises(UserError, match=f"{name} 'another' is not supported"):
                read(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": None}, "has no text_config"),
        ({"vision_config": 7}, "has no vision_config"),
        ({"vision_feature_layer": 99}, "no vision_feature_layer 99"),
        ({"image_token_index": "3"}, "image_token_index should be"),
        ({"model_type": "nothing"}, "Expected model_type .* got 'nothing'"),
        ({"model_type": None}, "Expected model_type .* got None"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(family, change, message):
    with pytest.raises(UserError, match=message):
        families.build_model(family.tiny | change)


def test_a_saved_folder_loads_with_the_familys_template(family, tmp_path, images):
    saved = policy(family)
    folder = save_model(saved, tmp_path / "model")
    loaded = load(folder)
    assert loaded.family is family and loaded.template == family.template and loaded.preprocessing.aspect in family.aspects
    for (name, ours), (_, theirs) in zip(
        tree_flatten(loaded.model.parameters()), tree_flatten(saved.model.parameters()), strict=True
    ):
        assert mx.array_equal(ours, theirs), name
    assert mx.array_equal(scores(loaded, images), scores(saved, images))


def test_a_folder_that_lacks_a_tensor_or_has_one_more_is_refused(family, tmp_path):
    folder = save_model(policy(family), tmp_path / "model")
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["extra.weight"] = weights.pop(f"{family.tower}embeddings.position_embedding.weight")
    save_file(weights, file, {"format": "mlx"})
    with pytest.raises(UserError, match=r"(?s)1 tensors are missing.*position_embedding.*1 tensors are unexpected.*extra"):
        load(folder)


@pytest.mark.parametrize("aspect", ["pad", "crop"])
def test_an_aspect_that_it_never_saw_is_refused(family, tmp_path, aspect):
    folder = save_model(policy(family), tmp_path / "model")
    if aspect in family.aspects:
        assert load(folder, aspect=aspect).preprocessing.aspect == aspect
        return
    with pytest.raises(UserError, match=f"{family.title} takes aspect .* only"):
        load(folder, aspect=aspect)


@pytest.mark.parametrize("layout", ["classic", "nested-flat"])
def test_the_converter_takes_it_there_and_back(family, tmp_path, layout, capsys):
    """Into the names of a Hugging Face layout, which is the converter read backwards, and to MLX again: the same bits."""
    model = save_model(policy(family), tmp_path / "model")
    hf, mlx = tmp_path / "hf", tmp_path / "mlx"
    assert main(["export", "--mlx-path", str(model), "--hf-path", str(hf), "--layout", layout, "--verify"]) == 0
    names = load_file(hf / "model.safetensors").keys()
    assert names != load_file(model / "model.safetensors").keys() or layout == "classic"
    arguments = ["--hf-path", str(hf), "--mlx-path", str(mlx), "--dtype", "float32", "--verify"]
    assert main(["llava", *arguments]) == 0, capsys.readouterr().err
    before, after = (load_file(folder / "model.safetensors") for folder in (model, mlx))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert read_json(mlx / "config.json")["visalign"]["template"] == family.template


# -- from pixels to words ------------------------------------------------------------------------------------------------


def test_images_take_as_many_places_as_it_says(family, images):
    read = policy(family)
    features = read.image_features(images)
    embeds = [len(one) for one in family.embeds(read.model, features)]
    assert embeds == [read.image_tokens_of(image) for image in images]
    most = family.image_tokens(read.model)
    sizes = {family.image_tokens_of(read.model, height, width) for height, width in SIZES}
    assert max(sizes) <= most == read.image_tokens == shape_of(read.model).image_tokens
    assert (len({*embeds}) > 1) == (len(sizes) > 1) == family.varies
    for image, one in zip(images, features, strict=True):
        np.testing.assert_allclose(one, read.features(read.pixels(image)[None])[0], rtol=2e-3, atol=2e-3)  # in float16


def test_the_prefix_cache_equals_the_models_own_forward(family, images):
    """Three rows of different lengths with different images, two answers each, against each whole row by itself."""
    read = policy(family)
    found = np.array(scores(read, images))
    features = read.image_features(images)
    for row, (question, answers) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        [embeds] = family.embeds(read.model, [features[row]] if family.varies else features[row : row + 1])
        [prompt] = fitted([read.prompt_ids(question)], read.image_token, [embeds])
        for column, answer in enumerate(answers):
            ids = read.response_ids(answer)
            whole = mx.array([prompt + ids])
            logits = plain_logits(read.model, whole, merge(read.decoder.embed(whole), whole, read.image_token, [embeds]))
            expected = token_logps(logits, whole)[0, -len(ids) :].sum().item()
            assert found[row, column] == pytest.approx(expected, abs=SAME_SUM)


def test_the_image_matters(family, images):
    one = np.array(scores(policy(family), images))
    other = np.array(scores(policy(family), [images[0], images[2], images[1]]))
    assert np.abs(one - other)[1:].min() > 1e-4


def test_a_batch_equals_single_rows(family, images):
    together = np.array(scores(policy(family), images))
    alone = np.concatenate([np.array(scores(policy(family), images, [row])) for row in range(3)])
    np.testing.assert_allclose(together, alone, atol=SAME_SUM)


def test_answers_are_the_same_in_a_batch_and_alone(family, images):
    read = policy(family)
    prompts = [read.prompt_ids(question) for question in QUESTIONS]
    together = read.generate(read.prefill(read.image_features(images), prompts), Sampling(6))
    for answer, image, prompt in zip(together, images, prompts, strict=True):
        assert [answer] == read.generate(read.prefill(read.image_features([image]), [prompt]), Sampling(6))
        assert 1 <= len(answer.ids) <= 6
    assert read.answer(images[1], QUESTIONS[1], max_tokens=6) == read.answer(images[1], QUESTIONS[1], max_tokens=6)


def test_a_wrong_number_of_images_is_refused(family, images):
    read = policy(family)
    with pytest.raises(UserError, match="for 2 images"):
        read.prefill(read.image_features(images[:2]), [read.prompt_ids(question) for question in QUESTIONS])


# -- learning ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", ["sigmoid", "mdpo"])
def test_an_adapter_learns_a_step_and_travels(family, tmp_path, images, loss_type):
    """mDPO reads each prompt with a crop of its image too, which may take another number of places."""
    learner = policy_of(family)
    settings = PreferenceSettings(loss_type=loss_type)
    pairs = [Pair(f"{i}", (str(image),), QUESTIONS[i], *ANSWERS[i]) for i, image in enumerate(images)]
    learner.attach(LoRASettings(rank=2), seed=1)
    blocks = family.tiny["text_config"]["num_hidden_layers"]
    names = set(adapters(learner.model))
    assert len(names) == 7 * blocks and all(name.startswith(family.blocks) for name in names)

    batch = pair_batch(learner, with_reference(learner, pairs, settings.loss.reads))
    loss = preference_loss(learner, settings)
    before, gradients = nn.value_and_grad(learner.model, lambda: loss(batch)[0])()
    assert before.item() == pytest.approx(settings.loss.start, abs=1e-4)
    found = dict(tree_flatten(gradients))
    assert found.keys() == {f"{name}.lora_{part}" for name in names for part in "ab"}
    assert all(math.isfinite(mx.abs(array).max().item()) for array in found.values())
    assert all(mx.abs(found[f"{name}.lora_b"]).max().item() > 0 for name in names)  # B begins at 0, so A waits for it
    for name, layer in adapters(learner.model).items():
        layer.lora_b = layer.lora_b - 0.5 * found[f"{name}.lora_b"]
    assert loss(batch)[0].item() < before.item()

    learner.save_adapter(tmp_path)
    other = policy_of(family)
    assert other.load_adapter(tmp_path) == len(names)
    np.testing.assert_allclose(scores(other, images), scores(learner, images), atol=SAME_SUM)
    with other.adapter_off():
        assert mx.array_equal(scores(other, images), scores(policy(family), images))


@pytest.mark.parametrize("quick", [True, False])
def test_the_doctor_finds_it_sound(family, quick):
    assert [finding for finding in examine(policy_of(family), quick) if not finding.ok] == []


def test_a_whole_run_learns_from_images_of_every_shape(tmp_path):
    """SeVa on the embedded model as the stub's family: squares and wide images, and crops of them, in one batch."""
    model, photos = tmp_path / "model", tmp_path / "photos"
    shutil.copytree(TINY, model)
    config = read_json(model / "config.json") | {"model_type": "panorama"}
    (model / "config.json").write_text(json.dumps(config))
    photos.mkdir()
    drawn = [draw(one) for one in split("validation", 4)]
    for index, picture in enumerate(drawn):
        wide = np.concatenate([picture, drawn[-1 - index]], axis=1)
        Image.fromarray(np.asarray(wide if index % 2 else picture)).save(photos / f"{index}.png")
    settings = small_runs.SETTINGS["seva"] | {"max_tokens": 40} | {"train": small_runs.TRAIN | {"iters": 2}}
    report = mlx_visalign.align("seva", model=model, images=photos, max_images=4, output=tmp_path / "run", settings=settings)
    assert report["training"] and (tmp_path / "run" / "adapter" / "adapters.safetensors").is_file()


# -- the registry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no Python file"),
        ("1 / 0", "cannot be imported .ZeroDivisionError"),
        ("FAMILY = 'mine'", "should have a Family called FAMILY, got the text 'mine'"),
        ("from mlx_visalign.models.families.llava import FAMILY", "There is a family called 'llava' already"),
    ],
)
def test_a_file_that_is_no_family_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=message):
        families.add_file(tmp_path / "mine.py")
    assert "mine" not in families.names()


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(UserError, match="There is a family called 'llava' already"):
        families.register(families.find("llava"))


def test_installed_packages_may_bring_families(monkeypatch):
    def points(group):
        assert group == "mlx_visalign.families"
        return [
            EntryPoint("wide", "stub_family:FAMILY", group),
            EntryPoint("lost", "no_such_module:FAMILY", group),
            EntryPoint("odd", "json:dumps", group),
        ]

    monkeypatch.syspath_prepend(str(STUB.parent))
    monkeypatch.setattr(families, "entry_points", points)
    assert families.find("wide").title == "Panorama" and {"wide", "lost"} <= {*families.names()}
    assert families.others() == ["image_newline", "multi_modal_projector.*"]  # none of them is imported
    with pytest.raises(UserError, match="family lost cannot be imported"):
        families.find("lost")
    with pytest.raises(UserError, match="family odd is invalid: json:dumps should be a Family"):
        families.find("odd")
