"""FiSAO (reconstructed): fine-grained self-alignment optimization (Cui et al., arXiv 2410.14148).

The model's own vision encoder with its text encoder (CLIP) scores every object that an answer names against the image. The
score, compared with those of correct and of hallucinated mentions, is a reward for that word alone; PPO learns from it.
No labels, no separate reward model, no preference pairs.

RECONSTRUCTED, not a port: no code was published, and the paper's equations 7 and 8, its algorithm and its
hyper-parameters could not be read. From the paper: the object scorer, the reward against a baseline of correct and
hallucinated objects found with CHAIR, an object vocabulary, thresholds, the model's own answers. Ours:
- reinforcement learning is taken to be PPO, with TRL's defaults and a linear critic cut off from the policy.
- the reward's shapes (`band`, `affine`), clipped to [-1, 1], and `oracle`, an ablation that needs labels.
- the scored phrase is the object's singular name in the vocabulary: a piece of a word means nothing to CLIP.
- all of the reward is on the mention's last token, so that it does not depend on how many tokens a word has; every other
  token gets only its share of the KL penalty.
- only the first mention of an object may earn a positive reward (`repeat` may penalise further ones); any may be penalised.
- `kl_coef` alone weighs rewards against the KL: advantages are whitened, so only the ratio counts.
- pseudo-labels for calibration of unlabelled images: the model's own confident yes or no to "is there a ...?".
  calibration.json, the pictures and the adapter's config say that they were used.
- word debiasing (`debias_images`), the weight of positive rewards (`praise`), and the guards: updates on a rollout stop
  once the policy has moved too far from it; training stops when the policy is far from the reference, and when answers get
  short or name few objects.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mlx_visalign.data.images import Aspect, open_image
from mlx_visalign.data.questions import descriptions
from mlx_visalign.data.records import Prompt, read_jsonl
from mlx_visalign.inference.policy import Answer
from mlx_visalign.inference.prefix_cache import Prefix
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.fisao.calibration import Calibration, Scored, calibrate, read_labels
from mlx_visalign.methods.fisao.figures import RewardedAnswer, RewardedImage, draw_calibration, words_gallery, words_sheet
from mlx_visalign.methods.fisao.object_rewards import ObjectReward, ObjectScorer, RewardSettings, score_mentions
from mlx_visalign.methods.fisao.token_mentions import Reader
from mlx_visalign.methods.job import Job, Rank
from mlx_visalign.models.lora import adapter_at
from mlx_visalign.preflight.workload import Answering, Workload
from mlx_visalign.reporting.contact_sheet import save_sheet
from mlx_visalign.reporting.html import join, paragraphs, png, tag
from mlx_visalign.runs.stage import fingerprint
from mlx_visalign.scorers.clip import clip_scorer
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
    phrase              the text that the scorer gets for a mention; {} is the object, as in "a photo of a {}"
    labels              what is in the images: a list as in `evaluation/object_labels`, or a world such as "tiny-world";
                        used for calibration (and by the oracle) only. None: pseudo-labels
    calibration_images  maximum number of images described for calibration
    min_mentions        number of correct, and of hallucinated, mentions that calibration needs
    debias_images       subtract the phrase's mean score over this many images from every score; 0: off
    reward              how a score becomes a reward
    max_tokens          longest answer, end token included
    batch               images described together for the calibration
    train               PPO on the model's own answers
    """

    clip: str | None = None
    clip_aspect: Aspect = "pad"
    phrase: str = "{}"
    labels: str | None = None
    calibration_images: int = 500
    min_mentions: int = 50
    debias_images: int = 0
    reward: RewardSettings = field(default_factory=RewardSettings)
    max_tokens: int = 128
    batch: int = 8
    train: PPOSettings = field(default_factory=PPOSettings)

    def __post_init__(self) -> None:
        if "{}" not in self.phrase:
            raise UserError(f"phrase is '{self.phrase}'; it must contain {{}} in place of the object's name.")
        if self.reward.shape == "oracle" and self.labels is None:
            raise UserError("The reward 'oracle' needs labels: set labels, or use band or affine.")
        require(
            self,
            calibration_images=(self.calibration_images >= 1, "1 or more"),
            min_mentions=(self.min_mentions >= 1, "1 or more"),
            debias_images=(self.debias_images >= 0, "0 or more"),
            max_tokens=(self.max_tokens >= 1, "1 or more"),
            batch=(self.batch >= 1, "1 or more"),
        )

    def prompts_used(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts of rollouts: those that ask for descriptions."""
        return descriptions(prompts)

    def workload(self, prompts: Sequence[Prompt]) -> Workload:
        """Calibration, rollouts and PPO.

        Rollouts read their prompts a second time, without the adapter.
        """
        asked = len(self.prompts_used(prompts))
        trained = self.train.prompts_trained(asked)
        described, rolled = min(asked, self.calibration_images), trained // self.train.num_ppo_epochs
        stages = (
            Answering("calibration", described, described * self.max_tokens, self.batch, self.max_tokens),
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
        return Workload(stages, trained, copies=1, scorer=(self.clip, self.clip_aspect))


def train(job: Job, settings: Settings) -> None:
    """Calibrate, train with PPO on rollouts, save the adapter.

    Finished steps are not repeated; a stopped training resumes.
    """
    prompts = descriptions(job.prompts)
    if not prompts:
        raise UserError("FiSAO rewards objects named in descriptions, but none of the prompts asks for a description.")
    scorer = make_scorer(job, settings)
    calibration = measure(job, settings, scorer)
    train_on_rollouts(
        job.policy,
        prompts,
        make_reward(job, settings, scorer, calibration),
        settings.train,
        Sampling(settings.max_tokens, temperature=1.0),  # PPO's ratio is between unscaled probabilities
        job.run.folder,
        job.seed,
        locate=job.image,
        blank=job.blank,
        depends_on=_scoring(job, settings, scorer) | {"reward": asdict(settings.reward), "calibration": asdict(calibration)},
        on_metrics=job.on_metrics,
    )
    job.policy.save_adapter(job.run.adapter, method="fisao (reconstructed)", round=1, calibration_labels=calibration.labels)


def make_scorer(job: Job, settings: Settings) -> ObjectScorer:
    """The object scorer: the job's own score, or CLIP."""
    if job.score is not None:
        score, name = job.score, job.score_name
    else:
        score = clip_scorer(settings.clip, settings.clip_aspect, job.policy)
        name = score.name
    images = _images(descriptions(job.prompts), settings.debias_images)
    return ObjectScorer(name, score, settings.phrase, tuple(map(job.image, images)))


def measure(job: Job, settings: Settings, scorer: ObjectScorer) -> Calibration:
    """The stage `calibration`, and calibration.json.

    Objects named by the untrained policy, with scores and labels.
    """
    prompts = _one_an_image(descriptions(job.prompts), settings.calibration_images)
    truth = None
    if settings.labels is not None:
        truth = read_labels(settings.labels, [prompt.image for prompt in prompts], job.vocabulary)
    reader = Reader(job.policy.tokenizer, job.vocabulary)
    scoring = _scoring(job, settings, scorer)
    scored = job.run.records(
        Scored,
        "calibration",
        [prompt for prompt in prompts if truth is None or prompt.image in truth],
        lambda some: score_mentions(job.policy, some, job.image, reader, scorer, truth, Sampling(settings.max_tokens)),
        settings=job.about() | scoring | {"max_tokens": settings.max_tokens},
        batch=settings.batch,
        title="calibrating the scorer",
    )
    found = calibrate(scored, "pseudo" if truth is None else "given", settings.min_mentions)
    saved = {"calibration": found.to_row(), "scoring": scoring}
    write_atomically(job.run.folder / "calibration.json", json.dumps(saved, indent=1))
    say(found.in_words)
    return found


def make_reward(job: Job, settings: Settings, scorer: ObjectScorer, calibration: Calibration) -> ObjectReward:
    truth = None
    if settings.reward.shape == "oracle":
        images = [prompt.image for prompt in job.prompts + job.held_out]
        truth = read_labels(str(settings.labels), images, job.vocabulary)
    return ObjectReward(Reader(job.policy.tokenizer, job.vocabulary), scorer, job.image, calibration, settings.reward, truth)


def ranking(job: Job, settings: Settings) -> Rank:
    """Scores answers by summed rewards, for the best-of-n baseline.

    Uses the run's own calibration.
    """
    scorer = make_scorer(job, settings)
    reward = make_reward(job, settings, scorer, measure(job, settings, scorer))

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
    plots, scorer = job.run.plots, make_scorer(job, settings)
    calibration = Calibration.from_row(read_json(job.run.folder / "calibration.json")["calibration"])
    reward = make_reward(job, settings, scorer, calibration)
    shown = _before_and_after(job, settings, reward)
    save_sheet(words_sheet(shown, TITLE, LEGEND), plots / "fisao.png")
    rows = read_jsonl(job.run.rows("calibration"), Scored)
    draw_calibration(rows, calibration, reward.of_score, plots / "calibration.png")
    drawn = png((plots / "calibration.png").read_bytes(), "Scores of correct and of hallucinated mentions", "drawn chart")
    notes = paragraphs([RECONSTRUCTED, calibration.in_words], "soft")
    write_atomically(plots / "fisao.html", join(tag("h3", TITLE), notes, words_gallery(shown, LEGEND), drawn))


def _before_and_after(job: Job, settings: Settings, reward: ObjectReward) -> list[RewardedImage]:
    """The images whose answers before training had the largest penalties, with both answers."""
    prompts = _one_an_image(descriptions(job.held_out or job.prompts), LOOKED_AT)
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


def _scoring(job: Job, settings: Settings, scorer: ObjectScorer) -> dict[str, Any]:
    """What scores and labels depend on besides the answers."""
    chosen = {name: getattr(settings, name) for name in ("phrase", "labels", "debias_images")}
    return chosen | {"scorer": scorer.name, "vocabulary": fingerprint(job.vocabulary.entries)}


def _one_an_image(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    first = {prompt.image: prompt for prompt in reversed(prompts)}
    return [first[image] for image in _images(prompts, count)]


def _images(prompts: Sequence[Prompt], count: int) -> list[str]:
    return list(dict.fromkeys(prompt.image for prompt in prompts))[:count]
