"""Warm: the likeliest answer over one drawn at temperature 1. A method in a file of its own, for the tests."""

from dataclasses import dataclass

from mlx_visalign.data.records import Pair, Response
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.preference_rounds import PairSettings
from mlx_visalign.utils.seeding import key_for


@dataclass(frozen=True)
class Settings(PairSettings):
    max_tokens: int = 48


def sample(job, settings, prompts, number):
    prefix = job.prefill(prompts)
    greedy = job.policy.generate(prefix, Sampling(settings.max_tokens))
    keys = [key_for(job.seed, prompt.id, number) for prompt in prompts]
    drawn = job.policy.generate(prefix, Sampling(settings.max_tokens, temperature=1.0), keys)
    return [
        Response(**vars(prompt), view=view, text=answer.text, finished=answer.finished, tokens=len(answer.ids))
        for prompt, two in zip(prompts, zip(greedy, drawn, strict=True), strict=True)
        for view, answer in zip(("greedy", "drawn"), two, strict=True)
    ]


def pairs(rows, settings, seed):
    return [
        Pair(greedy.id, (greedy.image,), greedy.prompt, greedy.text, drawn.text)
        for greedy, drawn in zip(rows[::2], rows[1::2], strict=True)
        if greedy.text != drawn.text
    ]
