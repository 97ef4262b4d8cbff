"""A policy with random weights, the tiny world's tokenizer and 28-pixel images: answers are nonsense, the plumbing is real."""

from functools import cache

from random_llava import CONFIG, random_llava

from mlx_visalign.data.images import Preprocessing
from mlx_visalign.inference.policy import Policy
from mlx_visalign.tiny_world.tokenizer import train_llava_tokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
tokenizer = cache(train_llava_tokenizer)


def random_policy(seed: int = 0, cache_gb: float = 1.0) -> Policy:
    words = tokenizer()
    image_token = words.convert_tokens_to_ids("<image>")
    model = random_llava(seed, config=CONFIG | {"image_token_index": image_token}, vocab_size=len(words))
    return Policy(model, words, Preprocessing(28, MEAN, STD, "pad"), "vicuna_v1", f"random-{seed}", cache_gb)
