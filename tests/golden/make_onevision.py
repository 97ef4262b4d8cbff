"""transformers' logits of the LLaVA-OneVision in tests/helpers/random_onevision.py; writes tests/golden/onevision.npz.

Run from the project's root: python tests/golden/make_onevision.py (needs the `reference` extra).
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from random_onevision import CONFIG, IMAGE, IMAGE_TOKENS, MEAN, STD, random_onevision

FILE = Path(__file__).with_name("onevision.npz")
# Two prompts of different lengths, with an image each.
ROWS = [[7, 8, *[IMAGE] * IMAGE_TOKENS, 9, 10, 30, 31], [20, *[IMAGE] * IMAGE_TOKENS, 23, 24, 25, 26, 40, 2, 50]]


def squares() -> list[Image.Image]:
    """Images of the tower's own size, as `pad` makes them of any image."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (44, 44, 3), dtype=np.uint8)) for _ in ROWS]


def image_processor(size: int = 44, grids: list[list[int]] = CONFIG["image_grid_pinpoints"]):
    # The Pillow one by its own name: it needs neither torch nor torchvision.
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    return LlavaOnevisionImageProcessorPil(
        size={"height": size, "width": size}, image_grid_pinpoints=grids, image_mean=list(MEAN), image_std=list(STD)
    )


def torch_name(name: str) -> str:
    """The transformers 5 parameter of an mlx-vlm parameter."""
    name = name.replace("vision_tower.vision_model.", "vision_tower.").replace("language_model.model.", "language_model.")
    return "lm_head.weight" if name == "language_model.lm_head.weight" else f"model.{name}"


def transformers_model(tied: bool):
    """LlavaOnevisionForConditionalGeneration with the random model's weights, float32, eager attention."""
    import torch
    from mlx.utils import tree_flatten
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    config = LlavaOnevisionConfig(**CONFIG | {"tie_word_embeddings": tied}, attn_implementation="eager")
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    state = {}
    for name, array in tree_flatten(random_onevision(tied).parameters()):
        value = np.array(array)
        state[torch_name(name)] = torch.tensor(value.transpose(0, 3, 1, 2) if value.ndim == 4 else value)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert missing == (["lm_head.weight"] if tied else []), missing
    return model


def logits(tied: bool) -> list[np.ndarray]:
    """Each row by itself, its image through transformers' own processor."""
    import torch

    model, process, found = transformers_model(tied), image_processor(), []
    for row, image in zip(ROWS, squares(), strict=True):
        inputs = process(images=image, return_tensors="pt")
        with torch.no_grad():
            out = model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long), **inputs)
        found.append(out.logits[0].numpy())
    return found


def logits_together() -> list[np.ndarray]:
    """Both rows in one padded batch, with batch_num_images 1 and 1."""
    import torch

    length = max(map(len, ROWS))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in ROWS])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ROWS])
    inputs = image_processor()(images=[[image] for image in squares()], return_tensors="pt")
    assert inputs["batch_num_images"].tolist() == [1, 1]
    with torch.no_grad():
        out = transformers_model(False)(input_ids=ids, attention_mask=mask, **inputs).logits.numpy()
    return [out[index, : len(row)] for index, row in enumerate(ROWS)]


def image_features(sizes: list[tuple[int, int]], images_in_a_prompt: int) -> list[np.ndarray]:
    """transformers' packed features of noise of these (width, height), so many images in each prompt."""
    import torch

    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]
    groups = [pictures[at : at + images_in_a_prompt] for at in range(0, len(pictures), images_in_a_prompt)]
    inputs = image_processor()(images=groups, return_tensors="pt")
    with torch.no_grad():
        return [features.numpy() for features in transformers_model(False).get_image_features(**inputs).pooler_output]


if __name__ == "__main__":
    import torch
    import transformers

    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    heads = {"untied": False, "tied": True}
    arrays = {f"{head}{row}": found for head, tied in heads.items() for row, found in enumerate(logits(tied))}
    np.savez_compressed(FILE, versions=versions, **arrays)
    print(FILE, versions)
