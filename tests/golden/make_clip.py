"""Makes clip.npz: a random CLIP of transformers' own, its inputs and its vectors. Run: python tests/golden/make_clip.py

The weights are stored, because random numbers are not the same in every version of torch.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY, END = 20, 19


def config(eos_token_id: int) -> transformers.CLIPConfig:
    """`eos_token_id` 2 asks for OpenAI's pooling, at the highest id."""
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 8, "eos_token_id": eos_token_id}
    vision = {"image_size": 8, "patch_size": 4}
    return transformers.CLIPConfig(text_config={**SMALL, **text}, vision_config={**SMALL, **vision}, projection_dim=12)


def random_clip(eos_token_id: int = END) -> transformers.CLIPModel:
    torch.manual_seed(0)
    clip = transformers.CLIPModel(config(eos_token_id)).eval()
    for parameter in clip.parameters():  # the usual start has zero biases, which would hide a missing one
        torch.nn.init.normal_(parameter, std=0.3)
    return clip


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Three images (b h w 3) and three texts that end at different places and are padded with the end token."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, END, (3, 8))
    for row, end in enumerate((7, 4, 2)):
        ids[row, end:] = END
    return rng.normal(size=(3, 8, 8, 3)).astype(np.float32), ids


@torch.no_grad()
def vectors(clip: transformers.CLIPModel, images: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of the images and of the texts."""
    outputs = clip(input_ids=torch.tensor(ids), pixel_values=torch.tensor(images.transpose(0, 3, 1, 2)))
    return outputs.image_embeds.numpy(), outputs.text_embeds.numpy()


if __name__ == "__main__":
    clip = random_clip()
    images, ids = inputs()
    image_vectors, text_vectors = vectors(clip, images, ids)
    weights = {f"weights.{name}": value.numpy() for name, value in clip.state_dict().items()}
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    np.savez_compressed(
        Path(__file__).with_name("clip.npz"),
        images=images,
        ids=ids,
        image_vectors=image_vectors,
        text_vectors=text_vectors,
        versions=versions,
        **weights,
    )
