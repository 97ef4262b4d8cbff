"""Warm: the likeliest answer over one drawn at temperature 1. A method in a file of its own, for the tests."""

from dataclasses import dataclass, field, replace
from functools import partial

from mlx_visalign.data.records import Pair
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.preflight.workload import Answering, Workload
from mlx_visalign.training.dpo import PreferenceSettings, train_on_pairs, with_reference
from mlx_visalign.utils.seeding import key_for


@dataclass(frozen=True)
class Settings:
    max_tokens: int = 48
    batch: int = 4
    train: PreferenceSettings = field(default_factory=PreferenceSettings)

    def learns_from(self, prompts):
        return len(prompts)

    def workload(self, prompts):
        sampled = 2 * self.max_tokens * len(prompts)
        stage = Answering("answering", len(prompts), sampled, self.batch, self.max_tokens, drawn=True, read=2)
        return Workload((stage,), self.train.prompts_trained(len(prompts)))


def train(job, settings):
    pairs = answer(job, settings, job.prompts, "pairs")
    if job.held_out:
        answer(job, settings, job.held_out, "held_out_pairs")
    train_on_pairs(job.policy, pairs, settings.train, job.run.folder, job.seed, job.on_metrics)
    job.policy.save_adapter(job.run.adapter, method="warm", round=1)


def answer(job, settings, prompts, name):
    depends = job.about() | {"seed": job.seed, "max_tokens": settings.max_tokens}
    work = partial(answer_some, job, settings)
    pairs = job.run.records(Pair, name, prompts, work, settings=depends, batch=settings.batch, title="answering")
    return [job.located(pair) for pair in pairs]


def answer_some(job, settings, prompts):
    prefix = job.policy.prefill(
        job.policy.image_features([job.image(prompt.image) for prompt in prompts]),
        [job.policy.prompt_ids(prompt.prompt) for prompt in prompts],
    )
    keys = [key_for(job.seed, prompt.id) for prompt in prompts]
    likeliest = job.policy.generate(prefix, Sampling(settings.max_tokens))
    drawn = job.policy.generate(prefix, Sampling(settings.max_tokens, 1.0), keys)
    both = [pair for pair in zip(prompts, likeliest, drawn, strict=True) if pair[1].text != pair[2].text]
    pairs = [Pair(p.id, (p.image,), p.prompt, better.text, worse.text, method="warm") for p, better, worse in both]
    scored = with_reference(job.policy, [job.located(pair) for pair in pairs]) if pairs else []
    return [replace(one, images=pair.images).to_row() for one, pair in zip(scored, pairs, strict=True)]


def ranking(job, settings):
    return lambda prompts, prefix, answers: [[-len(one.ids) for one in some] for some in answers]


def picture(job, settings):
    """Nothing is drawn."""
