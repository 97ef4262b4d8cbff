"""The folders the tiny models are written to: transformers loads them and says the same. Untrained weights will do."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image
from transformers import CLIPProcessor, LlavaProcessor

from mlx_visalign.inference.policy import load
from mlx_visalign.models.clip import CLIP, CLIPConfig, load_clip
from mlx_visalign.models.decoder import decoder_of
from mlx_visalign.models.families import build_model
from mlx_visalign.tiny_world.architecture import clip_config, llava_config
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.export import export_clip, export_llava
from mlx_visalign.tiny_world.scenes import split
from mlx_visalign.tiny_world.tokenizer import train_clip_tokenizer, train_llava_tokenizer
from mlx_visalign.utils.tolerances import PARITY

QUESTION = "Is there a red circle in the image?"
IMAGES = [Image.fromarray(draw(scene)) for scene in split("validation", 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both models with random weights; LLaVA's tower is CLIP's."""
    folder = tmp_path_factory.mktemp("world")
    mx.random.seed(0)
    clip_tokenizer, llava_tokenizer = train_clip_tokenizer(), train_llava_tokenizer()
    clip = CLIP(CLIPConfig.from_dict(clip_config(clip_tokenizer)))
    llava = build_model(llava_config(llava_tokenizer))
    llava.vision_tower.vision_model.update(clip.vision_model.parameters())
    export_clip(clip, clip_tokenizer, 0.2, folder / "clip")
    export_llava(llava, llava_tokenizer, folder / "llava")
    return folder


def prompt(processor: LlavaProcessor) -> str:
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def test_the_processor_gives_our_prompt_and_pixels(folder):
    policy, processor = load(folder / "llava"), LlavaProcessor.from_pretrained(folder / "llava")
    inputs = processor(images=IMAGES[:1], text=[prompt(processor)], return_tensors="np")
    assert inputs["input_ids"][0].tolist() == policy.prompt_ids(QUESTION)
    np.testing.assert_array_equal(inputs["pixel_values"][0].transpose(1, 2, 0), policy.pixels(IMAGES[0]))


def test_weights_come_back_as_float16_and_both_models_share_the_tower(folder):
    stored = mx.load(str(folder / "llava" / "model.safetensors"))
    assert {array.dtype for array in stored.values()} == {mx.float16}
    ours = dict(tree_flatten(load_clip(folder / "clip").vision_model.parameters()))
    theirs = dict(tree_flatten(load(folder / "llava", dtype=mx.float32).model.vision_tower.vision_model.parameters()))
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(value, theirs[name]) for name, value in ours.items())


def test_the_config_carries_template_aspect_threshold_and_both_rope_spellings(folder):
    llava, clip = (json.loads((folder / name / "config.json").read_text()) for name in ("llava", "clip"))
    assert llava["visalign"] == {"template": "vicuna_v1", "aspect": "pad"}
    assert clip["visalign"] == {"aspect": "pad", "threshold": 0.2}
    assert llava["text_config"]["rope_theta"] == llava["text_config"]["rope_parameters"]["rope_theta"]


@pytest.mark.reference
def test_transformers_llava_gives_the_same_logits(folder):
    import torch
    from transformers import LlavaForConditionalGeneration

    processor = LlavaProcessor.from_pretrained(folder / "llava")
    inputs = processor(images=IMAGES, text=[prompt(processor)] * 2, return_tensors="pt")
    with torch.no_grad():
        reference = LlavaForConditionalGeneration.from_pretrained(folder / "llava", dtype=torch.float32)
        theirs = reference(**inputs).logits[:, -1].numpy()
    policy = load(folder / "llava", dtype=mx.float32)
    features = policy.features(mx.stack([policy.pixels(image) for image in IMAGES]))
    prefix = policy.prefill(features, [policy.prompt_ids(QUESTION)] * 2)
    np.testing.assert_allclose(decoder_of(policy.model).head(prefix.state), theirs, atol=PARITY)


@pytest.mark.reference
def test_transformers_clip_gives_the_same_vectors(folder):
    import torch
    from transformers import CLIPModel

    texts = ["a red circle", "a small purple triangle at the bottom left."]
    inputs = CLIPProcessor.from_pretrained(folder / "clip")(images=IMAGES, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32)(**inputs)
    clip = load_clip(folder / "clip")
    pixels = mx.array(inputs["pixel_values"].numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(clip.encode_image(pixels), theirs.image_embeds.numpy(), atol=PARITY)
    np.testing.assert_allclose(clip.encode_text(mx.array(inputs["input_ids"].numpy())), theirs.text_embeds.numpy(), atol=PARITY)
