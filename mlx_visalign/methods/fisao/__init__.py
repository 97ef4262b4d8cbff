"""FiSAO (reconstructed): fine-grained self-alignment optimization (Cui et al., arXiv 2410.14148).

The model's own vision encoder with its text encoder (CLIP) scores every object that an answer names against the image. The
score, compared with those of correct and of hallucinated mentions, is a reward for that word alone; PPO learns from it.
No labels, no separate reward model, no preference pairs.

RECONSTRUCTED, not a port: no code was published, and the paper's equations 7 and 8, its algorithm and its
hyper-parameters could not be read. From the paper: the object scorer, the reward against a baseline of correct and
hallucinated objects found with CHAIR, an object vocabulary, thresholds, the model's own answers. Ours:
- reinforcement learning is taken to be PPO, with TRL's defaults and a linear critic cut off from the policy.
- the reward's shapes, clipped to [-1, 1]: `band` is what reviews say of equation 8. `affine` is the default, because the
  dead zone of `band` takes most of the reward away where a judge is good. `oracle` is an ablation that needs labels.
- what is scored is the object's name in the vocabulary: a piece of a word means nothing to CLIP.
- by default the score is not CLIP's alone, but combined with how often sampled answers name the object (methods/judge.py).
- all of the reward is on the mention's last token, so that it does not depend on how many tokens a word has; every other
  token gets only its share of the KL penalty.
- only the first mention of an object may earn a positive reward (`repeat` may penalise further ones); any may be penalised.
- `kl_coef` alone weighs rewards against the KL: advantages are whitened, so only the ratio counts.
- pseudo-labels for calibration of unlabelled images: the model's own confident yes or no to "is there a ...?".
  calibration.json, the pictures and the adapter's config say that they were used.
- the weight of positive rewards (`praise`), and the guards: updates on a rollout stop
  once the policy has moved too far from it; training stops when the policy is far from the reference, and when answers get
  short or name few objects.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from mlx_visalign.data.images import Aspect, open_image
from mlx_visalign.data.questions import descriptions, one_an_image
from mlx_visalign.data.records import Prompt
from mlx_visalign.inference.policy import Answer
from mlx_visalign.inference.prefix_cache import Prefix
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.fisao.calibration import Calibration, Scored, believed, calibrate, read_labels
from mlx_visalign.methods.fisao.figures import RewardedAnswer, RewardedImage, draw_calibration, words_gallery, words_sheet
from mlx_visalign.methods.fisao.object_rewards import ObjectReward, RewardSettings
from mlx_visalign.methods.fisao.token_mentions import Reader
from mlx_visalign.methods.job import Job, Rank
from mlx_visalign.methods.judge import Judge, JudgeSettings, make_judge
from mlx_visalign.models.lora import adapter_at
from mlx_visalign.preflight.workload import Answering, Workload
from mlx_visalign.reporting.contact_sheet import save_sheet
from mlx_visalign.reporting.html import join, paragraphs, png, tag
from mlx_visalign.training.config import PPOSettings
from mlx_visalign.training.ppo import train_on_rollouts
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json, write_atomically
from mlx_visalign.utils.schema import require

TITLE = "FiSAO (reconstructed): what each word of an answer earns"
LEGEND = "Every object that an answer names is scored against the image. A word's colour is its reward."
RECONSTRUCTED = "Reconstructed, because the paper's reward equation and hyper-parameters could not be read."
LOOKED_AT, SHOWN = 12, 3  # the picture: the worst 3 of the first 12 images


@dataclass(frozen=True)
class Settings:
    """FiSAO's settings.

    clip                the folder of the CLIP that scores mentions; none: the tiny model's own
    clip_aspect         its images: padded as LLaVA's are, which shares the vision tower's work, or cropped
    judge               how objects are judged
    labels              what is in the images: a list as in `evaluation/object_labels`, or a world such as "tiny-world";
                        used for calibration (and by the oracle) only. None: pseudo-labels
    min_mentions        number of correct, and of hallucinated, mentions that calibration needs
    reward              how a score becomes a reward
    max_tokens          longest answer, end token included
    batch               images answered together before the training
    train               PPO on the model's own answers
    """

    clip: str | None = None
    clip_aspect: Aspect = "pad"
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    labels: str | None = None
    min_mentions: int = 50
    reward: RewardSettings = field(default_factory=RewardSettings)
    max_tokens: int = 128
    batch: int = 8
    train: PPOSettings = field(default_factory=PPOSettings)

    def __post_init__(self) -> None:
        if self.reward.shape == "oracle" and self.labels is None:
            raise UserError("The reward 'oracle' needs labels: set labels, or use affine or band.")
        require(
            self,
            min_mentions=(self.min_mentions >= 1, "1 or more"),
            max_tokens=(self.max_tokens >= 1, "1 or more"),
            batch=(self.batch >= 1, "1 or more"),
        )

    def prompts_used(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts of rollouts: those that ask for descriptions."""
        return descriptions(prompts)

    def workload(self, prompts: Sequence[Prompt]) -> Workload:
        """The judge's stages, rollouts and PPO.

        Rollouts read their prompts a second time, without the adapter.
        """
        asked = len(self.prompts_used(prompts))
        trained = self.train.prompts_trained(asked)
        rolled = trained // self.train.num_ppo_epochs
        stages = (
            *self.judge.workload(asked, self.batch, self.max_tokens),
            Answering(
                "rollouts",
                rolled,
                rolled * self.max_tokens,
                self.train.batch_size,
                self.max_tokens,
                drawn=True,
                read=1,
                prefills=2,
                prefixes=2,
                adapters=3,
            ),
        )
        scorer = (self.clip, self.clip_aspect) if self.judge.reads_clip else None
        return Workload(stages, trained, copies=1, scorer=scorer)


def train(job: Job, settings: Settings) -> None:
    """Calibrate, train with PPO on rollouts, save the adapter.

    Finished steps are not repeated; a stopped training resumes.
    """
    prompts = descriptions(job.prompts)
    if not prompts:
        raise UserError("FiSAO rewards objects named in descriptions, but none of the prompts asks for a description.")
    if settings.labels is not None:  # said before the judge samples answers, which takes long
        checked = one_an_image(prompts)[: settings.judge.check_images]
        read_labels(settings.labels, [prompt.image for prompt in checked], job.vocabulary)
    judge = make_judge(job, settings)
    calibration = measure(job, settings, judge)
    train_on_rollouts(
        job.policy,
        prompts,
        make_reward(job, settings, judge, calibration),
        settings.train,
        Sampling(settings.max_tokens, temperature=1.0),  # PPO's ratio is between unscaled probabilities
        job.run.folder,
        job.seed,
        locate=job.image,
        blank=job.blank,
        depends_on=judge.name | {"reward": asdict(settings.reward), "calibration": asdict(calibration)},
        on_metrics=job.on_metrics,
    )
    job.policy.save_adapter(job.run.adapter, method="fisao (reconstructed)", round=1, calibration_labels=calibration.labels)


def measure(job: Job, settings: Settings, judge: Judge) -> Calibration:
    """The calibration, also written to calibration.json."""
    found = calibrate(mentions(job, settings, judge), "pseudo" if settings.labels is None else "given", settings.min_mentions)
    saved = {"calibration": found.to_row(), "scoring": judge.name | {"labels": settings.labels}}
    write_atomically(job.run.folder / "calibration.json", json.dumps(saved, indent=1))
    say(found.in_words)
    return found


def mentions(job: Job, settings: Settings, judge: Judge) -> list[Scored]:
    """What the untrained policy names, with scores and labels.

    In greedy and in sampled answers, for rollouts are sampled, and greedy answers alone hold few hallucinations. Of the
    images that the judge was checked on; given labels leave out those that have none.
    """
    truth = None
    if settings.labels is not None:
        truth = read_labels(settings.labels, [row.image for row in judge.checked], job.vocabulary)
    rows = [row for row in judge.checked if truth is None or row.image in truth]
    named = [(row, one) for row in rows for one in row.objects]
    scores = judge.objects([job.image(row.image) for row, _ in named], [one.object for _, one in named])
    return [
        Scored(
            row.id,
            row.image,
            one.object,
            score,
            believed(one.own["self_check"]) if truth is None else one.object in truth[row.image],
        )
        for (row, one), score in zip(named, scores, strict=True)
    ]


def make_reward(job: Job, settings: Settings, judge: Judge, calibration: Calibration) -> ObjectReward:
    truth = None
    if settings.reward.shape == "oracle":
        images = [prompt.image for prompt in job.prompts + job.held_out]
        truth = read_labels(str(settings.labels), images, job.vocabulary)
    reader = Reader(job.policy.tokenizer, job.vocabulary)
    return ObjectReward(reader, judge.objects, job.image, calibration, settings.reward, truth)


def ranking(job: Job, settings: Settings) -> Rank:
    """Scores answers by summed rewards, for the best-of-n baseline.

    Uses the run's own calibration.
    """
    judge = make_judge(job, settings)
    reward = make_reward(job, settings, judge, measure(job, settings, judge))

    def rank(prompts: Sequence[Prompt], prefix: Prefix, answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        return [
            [sum(part.reward for part in words) for words in reward([prompt] * len(some), [answer.ids for answer in some])]
            for prompt, some in zip(prompts, answers, strict=True)
        ]

    return rank


def picture(job: Job, settings: Settings) -> None:
    """Write `plots/fisao.png`, `calibration.png` and `fisao.html`.

    Answers before and after training with rewarded words coloured, the scores that rewards are calibrated on, and both as
    HTML.
    """
    plots, judge = job.run.plots, make_judge(job, settings)
    calibration = Calibration.from_row(read_json(job.run.folder / "calibration.json")["calibration"])
    reward = make_reward(job, settings, judge, calibration)
    shown = _before_and_after(job, settings, reward)
    save_sheet(words_sheet(shown, TITLE, LEGEND), plots / "fisao.png")
    draw_calibration(mentions(job, settings, judge), calibration, reward.of_score, plots / "calibration.png")
    drawn = png((plots / "calibration.png").read_bytes(), "Scores of correct and of hallucinated mentions", "drawn chart")
    notes = paragraphs([RECONSTRUCTED, calibration.in_words], "soft")
    write_atomically(plots / "fisao.html", join(tag("h3", TITLE), notes, words_gallery(shown, LEGEND), drawn))


def _before_and_after(job: Job, settings: Settings, reward: ObjectReward) -> list[RewardedImage]:
    """The images whose answers before training had the largest penalties, with both answers."""
    prompts = one_an_image(descriptions(job.held_out or job.prompts))[:LOOKED_AT]
    with adapter_at(job.policy.model, 0):
        before = _rewarded(job, settings, reward, "before", prompts)
    after = _rewarded(job, settings, reward, "after", prompts)
    worst = sorted(range(len(prompts)), key=lambda i: sum(min(0.0, part.reward) for part in before[i].rewarded))[:SHOWN]
    return [RewardedImage(open_image(job.image(prompts[i].image)), (before[i], after[i])) for i in worst]


def _rewarded(
    job: Job, settings: Settings, reward: ObjectReward, heading: str, prompts: Sequence[Prompt]
) -> list[RewardedAnswer]:
    """Greedy answers, with their rewarded words."""
    found: list[RewardedAnswer] = []
    for start in range(0, len(prompts), settings.batch):
        some = prompts[start : start + settings.batch]
        features = job.policy.image_features([job.image(prompt.image) for prompt in some])
        prefix = job.policy.prefill(features, [job.policy.prompt_ids(prompt.prompt) for prompt in some])
        answers = [answer.ids for answer in job.policy.generate(prefix, Sampling(settings.max_tokens))]
        parts = zip(answers, reward(some, answers), strict=True)
        found += [RewardedAnswer(heading, reward.reader.text(ids), rewarded) for ids, rewarded in parts]
    return found
