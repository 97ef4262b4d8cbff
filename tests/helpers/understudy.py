"""An understudy: a narrow policy that goes through the real code in a large one's place and notes what is asked of it.

Sampling needs tokens, and a model without weights has none to give. The understudy's tokenizer, images, prompts and
answers are as long as the large model's; it has one block, and its head says what a script says. What was noted (so many
rows, tokens, keys) is then priced at the large model's widths: `flop_counter.Prices`.
"""

from collections import Counter
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from random_llava import CONFIG, random_llava
from transformers import AutoTokenizer

from mlx_visalign.data.images import Preprocessing
from mlx_visalign.inference.policy import TINY, Policy
from mlx_visalign.models.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from mlx_visalign.models.lora import RoundsLoRALinear
from mlx_visalign.scorers.clip import TINY_CLIP, CLIPScorer

# ("blocks", rows, tokens, keys before them, rounds), ("head", rows) or ("head", rows, tokens), ("tower", images),
# ("projector", images), ("clip_image", images), ("clip_text", rows, tokens)
Call = tuple[Any, ...]
NEVER = -100.0
GREY = (0.5, 0.5, 0.5)


class Notes:
    """How often each part was asked for what."""

    def __init__(self) -> None:
        self.calls: Counter[Call] = Counter()

    def __call__(self, part: str, *sizes: int) -> None:
        self.calls[part, *sizes] += 1

    def rows(self, part: str) -> int:
        """How many rows a part has read: images, in a tower."""
        return sum(times * sizes[0] for (name, *sizes), times in self.calls.items() if name == part)


class Noted(nn.Module):
    """A module that notes the length of its batches."""

    def __init__(self, notes: Notes, part: str, module: Any):
        super().__init__()
        self.notes, self.part, self.module = notes, part, module

    def __call__(self, x: mx.array, *more: Any, **named: Any) -> Any:
        self.notes(self.part, len(x))
        return self.module(x, *more, **named)


def note_block(notes: Notes, block: Any) -> None:
    """Let the one block there is note what it reads, and with how many rounds of the adapter: where it turns queries, keys.

    A prompt begins with its keys: only its last token is read whole (prefix_cache.prefill), part of reading the prompt.
    """
    attention, rope = block.self_attn, block.self_attn.rope
    in_prompt = False

    def noted(x: mx.array, offset: mx.array | int) -> mx.array:
        nonlocal in_prompt
        prompt, of_queries = isinstance(offset, int), x.shape[1] == attention.n_heads  # there are fewer of the keys
        if prompt or (of_queries and not in_prompt):
            projection = attention.q_proj
            rounds = projection.rounds_on if isinstance(projection, RoundsLoRALinear) else 0
            notes("blocks", x.shape[0], x.shape[2], mx.array(offset).max().item(), rounds)
        in_prompt = prompt or (in_prompt and not of_queries)
        return rope(x, offset=offset)

    attention.rope = noted


class ScriptedHead:
    """Sure of a word of its own for every row; at every `period`th step of sampling of `closing`, at step `last` of `end`."""

    def __init__(self, notes: Notes, vocabulary: int, words: list[int], period: int, closing: int, last: int | None, end: int):
        self.notes, self.vocabulary, self.words, self.period, self.closing = notes, vocabulary, words, period, closing
        self.last, self.end = last, end
        self.steps, self.rng = 0, np.random.default_rng(0)

    def __call__(self, states: mx.array) -> mx.array:
        self.notes("head", *states.shape[:-1])
        if states.ndim == 3:  # an answer is read, not sampled
            return mx.zeros((*states.shape[:-1], self.vocabulary))
        self.steps += 1
        said = self.rng.choice(self.words, len(states))
        if self.steps % self.period == 0:
            said[:] = self.end if self.steps == self.last else self.closing
        logits = np.full((len(states), self.vocabulary), NEVER, dtype=np.float32)
        logits[np.arange(len(states)), said] = 0
        return mx.array(logits)


class NotedCLIP(CLIP):
    """A narrow CLIP that notes what it reads."""

    def __init__(self, notes: Notes, words: int, end: int):
        text = TextConfig(16, 16, 1, 2, vocab_size=words, eos_token_id=end)
        vision = VisionConfig(16, 16, 1, 2, image_size=336, patch_size=14)
        super().__init__(CLIPConfig(text, vision, 16))
        self.notes = notes

    def encode_image(self, pixels: mx.array) -> mx.array:
        self.notes("clip_image", len(pixels))
        return super().encode_image(pixels)

    def encode_text(self, ids: mx.array) -> mx.array:
        self.notes("clip_text", *ids.shape)
        return super().encode_text(ids)


def understudy(notes: Notes, period: int, closing: str, last: int | None = None) -> Policy:
    """A policy with LLaVA-1.5's image size, whose sampled answers or sentences have `period` tokens, `closing` the last.

    Answers of several sentences have `last` tokens, an end token the last.
    """
    words = AutoTokenizer.from_pretrained(TINY)
    image = words.convert_tokens_to_ids("<image>")
    narrow = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision = CONFIG["vision_config"] | narrow | {"image_size": 336, "num_hidden_layers": 2}
    config = CONFIG | {"image_token_index": image, "vision_config": vision}
    model = random_llava(config=config, vocab_size=len(words), num_hidden_layers=1, num_key_value_heads=1, **narrow)
    language = model.language_model
    note_block(notes, language.model.layers[0])
    language.lm_head = ScriptedHead(
        notes, len(words), plain_words(words), period, words.convert_tokens_to_ids(closing), last, words.eos_token_id
    )
    model.vision_tower = Noted(notes, "tower", model.vision_tower)
    model.multi_modal_projector.gelu = Noted(notes, "projector", model.multi_modal_projector.gelu)  # used once a call
    return Policy(model, words, Preprocessing(336, GREY, GREY, "pad"), "vicuna_v1", "understudy", 1.0)


def understudy_scorer(notes: Notes) -> CLIPScorer:
    """A CLIP of its own, as `view: crop` has it, with a text of as many tokens as it has words."""
    words = AutoTokenizer.from_pretrained(TINY_CLIP)
    clip = NotedCLIP(notes, len(words), words.eos_token_id)
    return CLIPScorer(clip, words, Preprocessing(336, GREY, GREY, "crop"), "understudy")


def plain_words(words: Any) -> list[int]:
    """The tokens that are a whole word of letters, after a space, for CLIP's tokenizer too."""
    clip = AutoTokenizer.from_pretrained(TINY_CLIP)
    texts = {token: piece[1:] for piece, token in words.get_vocab().items() if piece[0] == "▁" and piece[1:].isalpha()}
    return sorted(token for token, text in texts.items() if len(clip(text).input_ids) == 3)  # start, word, end


def question_of(policy: Policy, tokens: int) -> str:
    """A question whose whole prompt, image included, has so many tokens."""
    word = " " + policy.tokenizer.decode(plain_words(policy.tokenizer)[:1]).strip()
    question = "Describe this image in detail."
    return question + word * (tokens - len(policy.prompt_ids(question)))
