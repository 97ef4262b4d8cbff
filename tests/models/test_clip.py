"""CLIP against transformers: the same vectors from the same weights, to 1e-5."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from small_clip import CONFIG

from mlx_visalign.models.clip import CLIP, CLIPConfig, from_hugging_face, load_clip
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.tolerances import PARITY


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "golden" / "clip.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def weights(golden) -> dict[str, mx.array]:
    return {name[8:]: mx.array(value) for name, value in golden.items() if name.startswith("weights.")}


@pytest.fixture
def folder(tmp_path: Path, weights) -> Path:
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_both_towers_give_the_vectors_of_transformers(golden, folder):
    clip = load_clip(folder)
    image_vectors, text_vectors = clip.encode_image(mx.array(golden["images"])), clip.encode_text(mx.array(golden["ids"]))
    np.testing.assert_allclose(image_vectors, golden["image_vectors"], atol=PARITY)
    np.testing.assert_allclose(text_vectors, golden["text_vectors"], atol=PARITY)


def test_padding_of_any_length_changes_no_text(golden, folder):
    clip = load_clip(folder)
    long = clip.encode_text(mx.array(golden["ids"]))
    short = clip.encode_text(mx.array(golden["ids"][2:, :3]))
    np.testing.assert_allclose(short[0], long[2], atol=1e-6)


def test_eos_2_pools_at_the_highest_id_as_in_openais_configs(golden, weights):
    text_config = {**CONFIG["text_config"], "eos_token_id": 2}
    clip = CLIP(CLIPConfig.from_dict({**CONFIG, "text_config": text_config}))
    clip.load_weights(list(from_hugging_face(weights).items()))
    np.testing.assert_allclose(clip.encode_text(mx.array(golden["ids"])), golden["text_vectors"], atol=PARITY)


def test_position_ids_of_old_checkpoints_are_ignored(folder, weights):
    weights = {**weights, "text_model.embeddings.position_ids": mx.arange(8)[None]}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    load_clip(folder)


def test_a_folder_without_a_clip_says_so(tmp_path):
    with pytest.raises(UserError, match=r"expected config\.json"):
        load_clip(tmp_path)


def test_another_model_says_so(folder):
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "siglip"}))
    with pytest.raises(UserError, match="'siglip'"):
        load_clip(folder)


def test_missing_weights_say_so(folder, weights):
    mx.save_safetensors(str(folder / "model.safetensors"), dict(list(weights.items())[1:]))
    with pytest.raises(UserError, match="do not fit"):
        load_clip(folder)


def test_damaged_weights_say_so(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match="cannot be read"):
        load_clip(folder)


@pytest.mark.reference
@pytest.mark.parametrize("eos_token_id", [19, 2])
def test_a_folder_saved_by_transformers_loads_with_the_same_vectors(tmp_path, eos_token_id):
    from golden.make_clip import inputs, random_clip, vectors

    reference = random_clip(eos_token_id)
    reference.save_pretrained(tmp_path)
    images, ids = inputs()
    image_vectors, text_vectors = vectors(reference, images, ids)
    clip = load_clip(tmp_path)
    np.testing.assert_allclose(clip.encode_image(mx.array(images)), image_vectors, atol=PARITY)
    np.testing.assert_allclose(clip.encode_text(mx.array(ids)), text_vectors, atol=PARITY)
    assert clip.logit_scale.item() == pytest.approx(reference.logit_scale.item())
