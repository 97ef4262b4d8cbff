"""Exports the tiny models as Hugging Face folders.

They have the classic layout in float16, which transformers and mlx-vlm can also load.
"""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from safetensors.numpy import save
from transformers import CLIPProcessor, CLIPTokenizer, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from mlx_visalign.data.prompt_template import TEMPLATES
from mlx_visalign.models.clip import CLIP
from mlx_visalign.tiny_world.architecture import PATCH_SIZE, clip_config, llava_config
from mlx_visalign.tiny_world.pretrain_clip import MEAN, STD
from mlx_visalign.tiny_world.scenes import IMAGE_SIZE
from mlx_visalign.utils.files import replacing, save_pretrained, write_atomically


def export_clip(clip: CLIP, tokenizer: CLIPTokenizer, threshold: float, folder: Path) -> None:
    """Export CLIP with its threshold.

    `threshold` is the cosine above which a text fits an image; it goes to config.json, because CLIP has no such parameter.
    """
    config = {**clip_config(tokenizer), "visalign": {"aspect": "pad", "threshold": round(threshold, 4)}}
    _save_model(clip, config, folder)
    processor = CLIPProcessor(CLIPImageProcessorPil(**_pixels()), tokenizer)
    _save_processor(processor, folder)


def export_llava(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    _save_model(model, llava_config(tokenizer), folder)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", special)
    processor = LlavaProcessor(
        LlavaImageProcessorPil(do_pad=True, **_pixels()),
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" then removes
        chat_template=chat_template(),
    )
    _save_processor(processor, folder)


def chat_template() -> str:
    """The vicuna_v1 prompt for transformers' `apply_chat_template`."""
    system, _ = TEMPLATES["vicuna_v1"].split(" USER: ")
    return (
        system
        + "{% for message in messages %} {{ message['role'].upper() }}: "
        + "{% for part in message['content'] %}"
        + "{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}"
        + "{% endfor %}{{ eos_token if message['role'] == 'assistant' }}{% endfor %}"
        + "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )


def _save_model(model: Any, config: dict[str, Any], folder: Path) -> None:
    write_json(folder / "config.json", config)
    weights = {name: _for_torch(value) for name, value in dict(tree_flatten(model.parameters())).items()}
    with replacing(folder / "model.safetensors") as unfinished:
        unfinished.write(save(weights, metadata={"format": "pt"}))


def _for_torch(value: mx.array) -> np.ndarray:
    """Cast to float16, and convolution weights from MLX's OHWI to OIHW."""
    array = np.array(value.astype(mx.float16))
    return (array.transpose(0, 3, 1, 2) if array.ndim == 4 else array).copy(order="C")


def _save_processor(processor: LlavaProcessor | CLIPProcessor, folder: Path) -> None:
    save_pretrained(processor, folder)
    save_pretrained(processor.image_processor, folder)  # preprocessor_config.json, for older readers


def _pixels() -> dict[str, Any]:
    return {
        "size": {"shortest_edge": IMAGE_SIZE},
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def write_json(file: Path, content: dict[str, Any] | list[Any]) -> None:
    write_atomically(file, json.dumps(content, indent=2) + "\n")
