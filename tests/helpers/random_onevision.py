"""A LLaVA-OneVision with random weights: SigLIP at 44 pixels (a remainder of 2), so 3 x 3 patches and 21 image tokens."""

from functools import cache
from typing import Any

from random_llava import random_llava

from mlx_visalign.data.images import Preprocessing
from mlx_visalign.inference.policy import Policy
from mlx_visalign.models import families

CONFIG = families.find("llava_onevision").tiny
IMAGE, SIDE = 3, 3
IMAGE_TOKENS = 2 * SIDE * SIDE + SIDE
MEAN = STD = (0.5, 0.5, 0.5)
TEXT = ["Describe this image in detail.", "Is there a red triangle in the image?", "user assistant"]


def random_onevision(tied: bool = False, **text: Any) -> Any:
    return random_llava(config=CONFIG | {"tie_word_embeddings": tied}, **text)


@cache
def tokenizer() -> Any:
    """Qwen2's own class, with as few words as the tests need."""
    from transformers import Qwen2Tokenizer

    special = ["<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    trained = Qwen2Tokenizer().train_new_from_iterator(2 * TEXT, 320, new_special_tokens=special, show_progress=False)
    trained.eos_token = "<|im_end|>"
    return trained


def policy_config(tied: bool = False) -> dict[str, Any]:
    """The config of a model that reads with `tokenizer`."""
    words = tokenizer()
    text = CONFIG["text_config"] | {"vocab_size": 320}
    image = words.convert_tokens_to_ids("<image>")
    return CONFIG | {"text_config": text, "image_token_index": image, "tie_word_embeddings": tied}


def random_policy() -> Policy:
    model = random_llava(config=policy_config())
    return Policy(model, tokenizer(), Preprocessing(44, MEAN, STD, "pad"), "onevision", "random", 1.0)
