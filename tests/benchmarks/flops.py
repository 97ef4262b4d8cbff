"""FLOPs of whole stages at LLaVA-1.5-7B's shapes, counted, with no weights and in half a gigabyte.

    python tests/benchmarks/flops.py      a minute

What is counted, and what is not, stands in tests/helpers/flop_counter.py. A training step, and the reading of its reference, is
the graph of the real loss on a real model of mlx-vlm's classes, whose weights are never drawn. Where sampling needs
tokens, the real code (trees, judging, rollouts) runs on a narrow model that notes every call (tests/helpers/understudy.py), and
each call is then counted in the graph of the large model. Prompts have 60 tokens and 576 of the image, answers 120; an
answer of CSR's is six sentences of 20 tokens. DPO's step takes image features from the cache: the tower is a row of its
own. FiSAO's rewards are not counted: CLIP reads 16 objects' names for 0.02 TFLOP.

"Others" are, by the same count: mlx-vlm 0.7.10's DPO step, from its trainer's own loss; and the calls of CSR's published
sampler and scorer, listed by hand, at the prices of our own forward pass.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from flop_counter import Prices, count, count_gradient
from understudy import Notes, plain_words, question_of, understudy, understudy_scorer
from weightless import CLIP_L14, LLAVA, make_photos, policy_of

from mlx_visalign.data.object_vocabulary import coco80
from mlx_visalign.data.records import Prompt
from mlx_visalign.inference.policy import Policy
from mlx_visalign.inference.prefix_cache import Prefix
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.csr.rewards import RewardSettings, Tree
from mlx_visalign.methods.csr.scoring import AnswerSettings, answer
from mlx_visalign.models import families
from mlx_visalign.models.clip import CLIP
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.models.value_head import ValueHead
from mlx_visalign.training.config import PPOSettings
from mlx_visalign.training.dpo import PairBatch, PreferenceSettings, pair_logps, preference_loss
from mlx_visalign.training.ppo import ppo_loss
from mlx_visalign.training.rollouts import RolloutBatch, RolloutSource
from mlx_visalign.training.trajectory import Rewarded

PROMPT, RESPONSE, SENTENCE, RANK = 636, 120, 20, 16
# The paper's settings, as its code has them; an answer is full after six sentences.
CSR = AnswerSettings(max_tokens=RESPONSE, prune="language", reward=RewardSettings(language="penalised_mean", over="code"))
# The recipe's `laptop`, with rollouts of one batch.
FISAO = PPOSettings(rollout_batch_size=4, batch_size=4, grad_accumulation_steps=1, num_ppo_epochs=2, lora=LoRASettings(32))


@dataclass(frozen=True)
class Stage:
    """A row of the table, in FLOP: what we take, at most so many TFLOP as a goal, and what others take for the same."""

    name: str
    ours: int
    goal: float | None = None
    others: int | None = None


def main() -> None:
    mx.disable_compile()
    table = Table("TFLOP", "ours", "goal", "others", title="LLaVA-1.5-7B: image and prompt of 636 tokens, answers of 120")
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder), FISAO.rollout_batch_size)
        for stages in (dpo_stages(photos[0]), csr_stages(photos[0]), fisao_stages(photos, Path(folder))):
            for stage in stages:
                goal = "" if stage.goal is None else f"<= {stage.goal:g}"
                table.add_row(stage.name, _tera(stage.ours), goal, _tera(stage.others))
            table.add_section()
    Console().print(table)


def _tera(flops: int | None) -> str:
    return "" if flops is None else f"{flops / 1e12:.2f}"


# -- DPO --------------------------------------------------------------------------------------------------------------


def dpo_stages(photo: Path) -> list[Stage]:
    policy = policy_of(LLAVA, [photo])
    batch = pair_of(policy, photo, PROMPT, RESPONSE)
    reference = count(lambda: pair_logps(policy, batch))
    hot = count(lambda: hot_reference(policy, batch))
    tower = count(lambda: families.of(policy.model).states(policy.model, mx.random.normal((1, 336, 336, 3))))
    policy.attach(LoRASettings(RANK), seed=0)
    step = count_gradient(lambda: step_of(policy.model, preference_loss(policy, PreferenceSettings()), batch))
    theirs = count(lambda: mlx_vlm_step(batch))
    return [
        Stage(f"a DPO step on one pair, rank {RANK}", step, 24.2, theirs),
        Stage("  with its reference, prefix hot", step + hot, 27.5, theirs),
        Stage("  with its reference, pair imported", step + reference, 36, theirs),
        Stage("  the image's features, once an image", tower),
    ]


def pair_of(policy: Policy, photo: Path, prompt: int, response: int) -> PairBatch:
    """A pair of so many tokens, with a reference."""
    words = np.random.default_rng(0).choice(plain_words(policy.tokenizer), (2, response)).tolist()
    return PairBatch(
        ["0"],
        [str(photo)],
        [policy.prompt_ids(question_of(policy, prompt))],
        [words],
        [{"chosen": 0.0, "rejected": 0.0}],
        [0.0],
    )


def step_of(model: nn.Module, loss: Callable[..., Any], *batch: Any) -> Any:
    """Loss and gradients, as `trainer.fit` takes them."""
    (value, _), gradients = nn.value_and_grad(model, loss)(*batch)
    return value, gradients


def hot_reference(policy: Policy, batch: PairBatch) -> mx.array:
    """Both answers' log-probabilities where the prefix was read before."""
    text, tokens = policy.model.language_model.config, len(batch.prompts[0])
    kv = (1, text.num_key_value_heads, tokens, text.hidden_size // text.num_attention_heads)
    blocks = [(mx.random.normal(kv), mx.random.normal(kv)) for _ in range(text.num_hidden_layers)]
    prefix = Prefix(blocks, np.ones((1, tokens), dtype=bool), mx.random.normal((1, text.hidden_size)))
    return policy.score(prefix, batch.responses)


def mlx_vlm_step(batch: PairBatch) -> Any:
    """A step of mlx-vlm's own trainer on the same pair: two models, four whole sequences, the image seen in each."""
    from mlx_vlm.trainer.peft.utils import get_peft_model
    from mlx_vlm.trainer.vlm.dpo.trainer import dpo_loss

    config = LLAVA | {"image_token_index": max(set(batch.prompts[0]), key=batch.prompts[0].count)}
    model, reference = families.build_model(config), families.build_model(config)
    get_peft_model(model, rank=RANK, alpha=2 * RANK, dropout=0.0, verbose=False)
    reference.freeze()
    sides = {}
    for name, response in zip(("chosen", "rejected"), batch.responses[0], strict=True):
        ids = mx.array([batch.prompts[0] + response])
        counted = mx.arange(ids.shape[1])[None] >= len(batch.prompts[0])
        pixels = mx.random.normal((1, 3, 336, 336))
        everything = {"input_ids": ids, "attention_mask": mx.ones_like(ids), "completion_mask": counted}
        sides[name] = everything | {"pixel_values": pixels}
    return step_of(model, partial(dpo_loss, reference_model=reference), model, sides)


# -- CSR --------------------------------------------------------------------------------------------------------------


def csr_stages(photo: Path) -> list[Stage]:
    prices = Prices(policy_of(LLAVA, []).model, CLIP(CLIP_L14))
    notes, tree = grown_tree(photo)
    found = prices.of(notes.calls)
    published = published_sampler(RESPONSE // SENTENCE)
    theirs = prices.of(published.calls)
    print(
        f"CSR, a prompt: {tree.tokens} tokens sampled in {len(tree.sentences)} sentences. Images through LLaVA's tower: "
        f"{notes.rows('tower')} (published: {published.rows('tower')}), through CLIP's: {notes.rows('clip_image')} "
        f"(published: {published.rows('clip_image')})."
    )
    return [
        Stage("CSR's sampling for a prompt", found["prefill"] + found["sampling"], 31, theirs.total() - theirs["judging"]),
        Stage("  of it image and prompt", found["prefill"]),
        Stage("  CLIP's judging of it", found["judging"], others=theirs["judging"]),
        Stage("  DPO's reference, prefix hot", found["reading"]),
    ]


def grown_tree(photo: Path) -> tuple[Notes, Tree]:
    """What `scoring.answer` asks of a model for one prompt."""
    notes = Notes()
    policy = understudy(notes, SENTENCE, ".", RESPONSE)
    prompt = Prompt("0", str(photo), question_of(policy, PROMPT))
    [tree] = answer(policy, understudy_scorer(notes), CSR, [prompt], [photo], coco80(), lambda *_: mx.random.key(0))
    return notes, tree


def published_sampler(levels: int) -> Notes:
    """CSR's code: for every node a `generate` of its own, whose five beams read image, prompt and answer so far again.

    All positions of a prefill go through the head, as transformers 4.37 had it; each sentence is judged with its image.
    """
    notes, beams = Notes(), 5
    for level in range(levels):
        read = PROMPT + level * SENTENCE
        for _ in range(1 if level == 0 else 3):
            for call in (("tower", beams), ("projector", beams), ("blocks", beams, read, 0, 0), ("head", beams, read)):
                notes.calls[call] += 1
            for step in range(1, SENTENCE):
                notes("blocks", beams, 1, read + step - 1, 0)
                notes("head", beams)
            for _ in range(beams):
                notes("clip_image", 1)
                notes("clip_text", 1, SENTENCE + 2)
    return notes


# -- FiSAO ------------------------------------------------------------------------------------------------------------


def fisao_stages(photos: Sequence[Path], folder: Path) -> list[Stage]:
    policy = policy_of(LLAVA, photos)
    policy.attach(FISAO.lora, seed=0)
    made = Prices(policy.model, CLIP(CLIP_L14)).of(rolled_out(photos, folder).calls)
    learned = FISAO.num_ppo_epochs * count_gradient(lambda: ppo_step(policy, photos))
    return [
        Stage(f"FiSAO's rollout of {len(photos)} and its updates", made.total() + learned),
        Stage("  images and prompts, and the reference's", made["prefill"]),
        Stage("  sampling", made["sampling"]),
        Stage("  log-probabilities, and the reference's", made["reading"]),
        Stage(f"  {FISAO.num_ppo_epochs} inner epochs, rank {FISAO.lora.rank}", learned),
    ]


def rolled_out(photos: Sequence[Path], folder: Path) -> Notes:
    """What one rollout asks of a model: answers to every photo, their log-probabilities and the reference's."""
    notes = Notes()
    policy = understudy(notes, RESPONSE, "</s>")
    policy.attach(FISAO.lora, seed=0)
    prompts = [Prompt(photo.stem, str(photo), question_of(policy, PROMPT)) for photo in photos]
    word = Rewarded("word", 0, 4, 0, 0, 1.0, 1.0)
    critic = ValueHead(policy.model.language_model.config.hidden_size)
    settings = (lambda _, answers: [(word,)] * len(answers), FISAO, Sampling(2 * RESPONSE, temperature=1.0))
    RolloutSource(policy, critic, prompts, *settings, folder, 0, Path).next()
    return notes


def ppo_step(policy: Policy, photos: Sequence[Path]) -> Any:
    """Loss and gradients of adapter and critic on a batch of answers."""
    critic, joint = ValueHead(policy.model.language_model.config.hidden_size), nn.Module()
    joint.groups = [policy.model, critic]
    rows = np.random.default_rng(0).choice(plain_words(policy.tokenizer), (len(photos), RESPONSE)).tolist()
    prompts = [policy.prompt_ids(question_of(policy, PROMPT))] * len(photos)
    numbers = [mx.random.normal((len(photos), RESPONSE)) for _ in range(4)]
    batch = RolloutBatch([photo.stem for photo in photos], list(photos), prompts, rows, *numbers, figures={})
    return step_of(joint, ppo_loss(policy, critic, FISAO), batch)


if __name__ == "__main__":
    main()
