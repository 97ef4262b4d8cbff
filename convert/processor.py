"""A model's preprocessing files, as our own loader, mlx-vlm and transformers each look for them."""

from pathlib import Path
from typing import Any

from mlx_visalign.convert.folder import write_json
from mlx_visalign.model_folder import IMAGES, PROCESSOR, missing_parts
from mlx_visalign.template import IMAGE
from mlx_visalign.vlm import read_json


def complete_processor(folder: Path, config: dict[str, Any]) -> list[str]:
    """Fill in what older or newer folders leave out; returns which files it takes to answer are still missing.

    transformers >= 5 keeps the image settings inside processor_config.json, everything else wants a file of their own.
    Without patch_size LLaVA-1.5's processor fails, and without num_additional_image_tokens it counts one image token short.
    """
    processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    images = processor.get("image_processor")
    if isinstance(images, dict) and not (folder / IMAGES).exists():
        write_json(folder / IMAGES, images)
    if config["model_type"] == "llava":
        needed = {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE,
            "patch_size": config["vision_config"]["patch_size"],
            "num_additional_image_tokens": 1,  # the class token, which "default" leaves out again
            "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        }
        said = {name: value for name, value in processor.items() if value is not None}
        if needed | said != processor:
            write_json(folder / PROCESSOR, needed | said)
    return missing_parts(folder)
