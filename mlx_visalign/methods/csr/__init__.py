"""CSR: calibrated self-rewarding (Zhou et al., arXiv 2405.14622).

Describe an image sentence by sentence, several ways at each step; reward every sentence by how well it fits the image
(a judge) and how confident the model is in it; take the best and the worst complete answer as a pair; train DPO against the
model that made them; repeat with the new model. No labels and no teacher.

The rewards' formulas are in `rewards`, the sampling is in `sentence_tree`. Departures, each with its reason ("the code" is
github YiyangZhou/CSR, read, never copied):
- the judge is CLIP on the objects that a sentence names, together with how often the model's sampled answers name them
  (methods/judge.py); the paper's and the code's is CLIP on the whole sentence (`judge.kind: clip`).
- rewards are ranks, as in the code, but centred and among different siblings, and an end token alone has 0: in the code it
  ranks last, so chosen answers are long, rejected ones short. `kind: rank` is the code's; `paper` gives the paper's values,
  which are almost CLIP's alone and, summed over sentences, reward length. The language score is the model's plain mean
  log-probability; the code's includes the penalties of sampling, which favour the first stream (`penalised_mean`).
- an answer's reward is the sum over its sentences, as in the paper; the code divides by one more than there are.
- a level is pruned by the reward, as the paper says; the code prunes by language alone (`prune: language`).
- a sentence also ends at the end token, and an end token alone is a sentence that says nothing about the image: the code
  keeps sampling past it, to the next full stop.
- an answer is full at `max_tokens` tokens; the code counts 1024 characters, the prompt's included. Answers that are full
  without the model's own end token are not candidates: training would add one, and teach the model to stop there.
- sentences keep their own tokens; the code cuts them out of texts by length. Broken ones are dropped before a level is
  pruned, so that none takes the place of a sound one.
- equal answers make no pair, nor do equal rewards; `max_length_gap` balances lengths: without it rounds may shrink answers.
- rounds are slices of one adapter, and nothing is merged: a merge into 4-bit weights would lose small updates.
- ours are also `form: response`, complete sampled answers instead of trees, `kind: calibrated`, pairs of next sentences
  (`pairs: step`, `greedy`), and the weight of the chosen answers' likelihood (`train.rpo_alpha`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any, Literal, get_args

import mlx.core as mx

from mlx_visalign.data.images import Aspect, open_image
from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.data.questions import descriptions
from mlx_visalign.data.records import Pair, Prompt, read_jsonl
from mlx_visalign.inference.policy import Answer
from mlx_visalign.inference.prefix_cache import Prefix
from mlx_visalign.methods.csr.figures import draw_tree, fragment, plot_rounds, rounds_in_html
from mlx_visalign.methods.csr.rewards import AMONG_SIBLINGS, Sentence, Tree
from mlx_visalign.methods.csr.scoring import AnswerSettings, answer, rewards
from mlx_visalign.methods.job import SCORED_TOGETHER, Job, Rank
from mlx_visalign.methods.judge import Judge, JudgeSettings, make_judge
from mlx_visalign.methods.preference_rounds import RoundSettings
from mlx_visalign.preflight.workload import Workload, further_scoring
from mlx_visalign.reporting.html import join
from mlx_visalign.training.losses import Side
from mlx_visalign.training.pair_filters import balance_lengths
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import parse_json, read_text, write_atomically
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.schema import require
from mlx_visalign.utils.seeding import key_for

ROWS = ("trees", Tree)
PAIR_SETTINGS = ("pairs", "margin", "margin_quantile", "max_length_gap")
ADVICE = (
    "To get more, use more streams (--set num_beam_groups=...), longer answers (--max-tokens), a smaller margin, a larger "
    "max_length_gap or more images."
)
TITLE = "How CSR grew and scored one answer"
SHORT = 0.8  # of the greedy answers' length
LOOKED_AT, LEVELS = 20, 6  # the picture: the largest of the first 20 trees that are at most six sentences deep


@dataclass(frozen=True)
class Settings(RoundSettings, AnswerSettings):
    """CSR's settings: those of making and scoring answers (`scoring.AnswerSettings`), and

    clip            the folder of the CLIP that scores sentences; none: the tiny model's own
    clip_aspect     its images: padded as LLaVA's are, which shares the vision tower's work, or cropped
    pairs           answer: the best and the worst complete answer of a tree; step: from every node that grew on, the best and
                    the worst next sentence after the same beginning; greedy: after the beginning of the model's greedy
                    answer, the best next sentence and the greedy one, where that is below the middle
    margin          pairs whose rewards differ by no more than this are left out, 0 and up
    margin_quantile the share of pairs that is left out because their rewards differ least, 0 to below 1
    max_length_gap  pairs are left out until chosen and rejected answers differ by at most this many tokens on average;
                    none: all are kept
    judge           how sentences are judged
    rounds, later_epochs, train
                    DPO on the pairs, in rounds, as in `preference_rounds.RoundSettings`
    batch           prompts answered together
    """

    clip: str | None = None
    clip_aspect: Aspect = "pad"
    pairs: Literal["answer", "step", "greedy"] = "answer"
    margin: float = 0.0
    margin_quantile: float = 0.0
    max_length_gap: float | None = 2.0
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    batch: int = 1

    def __post_init__(self) -> None:
        AnswerSettings.__post_init__(self)
        RoundSettings.__post_init__(self)
        require(
            self,
            margin=(self.margin >= 0, "0 or more"),
            margin_quantile=(0 <= self.margin_quantile < 1, "at least 0 and below 1"),
            max_length_gap=(self.max_length_gap is None or self.max_length_gap >= 0, "0 or more, or null"),
            batch=(self.batch >= 1, "1 or more"),
        )
        if self.pairs != "answer" and self.form != "sentence":
            raise UserError(f"pairs: {self.pairs} compares the sentences of a tree, so it needs form: sentence.")
        if self.pairs == "greedy" and not self.keep_greedy:
            raise UserError("pairs: greedy needs the whole greedy answer in the tree: set keep_greedy: true.")

    def prompts_used(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts that ask for descriptions."""
        return descriptions(prompts)

    def workload(self, prompts: Sequence[Prompt]) -> Workload:
        """Full-size trees, scoring their two answers, and DPO, all rounds."""
        count = len(self.prompts_used(prompts))
        stage = self.answering("answering and scoring", self.rounds * count, self.batch)
        scoring = further_scoring(self.train.loss, self.rounds * count, SCORED_TOGETHER, self.longest)
        judging = self.judge.workload(count, self.batch, self.max_tokens)
        scorer = (self.clip, self.clip_aspect) if self.judge.reads_clip else None
        return Workload((*judging, stage, *scoring), self.prompts_trained(count), rounds=self.rounds, scorer=scorer)


def prepare(job: Job, settings: Settings) -> Job:
    """The job with its judge, which is checked first."""
    return replace(job, judge=make_judge(job, settings))


def depends_on(job: Job, settings: Settings) -> dict[str, Any]:
    """What trees depend on besides their settings: the judge."""
    return judge_of(job).name


def scored(settings: Settings) -> bool:
    """Whether trees hold the reference of the pairs.

    They hold that of their best and their worst answer.
    """
    return settings.pairs == "answer"


def sample(job: Job, settings: Settings, prompts: Sequence[Prompt], number: int) -> list[Tree]:
    """A tree of scored sentences for every prompt."""
    images = [job.image(prompt.image) for prompt in prompts]

    def keys(prompt: Prompt, sample: int) -> mx.array:
        return key_for(job.seed, prompt.id, number, sample)

    judge = judge_of(job)
    return answer(job.policy, judge.sentences, with_spread(settings, judge), prompts, images, job.vocabulary, keys)


def judge_of(job: Job) -> Judge:
    """The judge of a prepared job."""
    assert job.judge is not None
    return job.judge


def with_spread(settings: Settings, judge: Judge) -> Settings:
    """The settings, with what a calibrated reward leaves open.

    Its threshold and width are then taken from the run's own scores.
    """
    reward = settings.reward
    if reward.kind != "calibrated" or None not in (reward.threshold, reward.width):
        return settings
    threshold, width = judge.spread
    filled = replace(reward, threshold=_or(reward.threshold, threshold), width=_or(reward.width, width))
    return replace(settings, reward=filled)


def _or(given: float | None, found: float) -> float:
    return found if given is None else given


def ranking(job: Job, settings: Settings) -> Rank:
    """Scores answers by reward, for the best-of-n baseline.

    Ranks among siblings cannot compare complete answers: `calibrated` takes the place of such a reward, and a sentence that
    repeats objects is penalised.
    """
    judge, reward = judge_of(prepare(job, settings)), settings.reward
    if reward.kind in AMONG_SIBLINGS:
        reward = replace(reward, kind="calibrated", over="sum", repeat_penalty=1.0)
    whole = with_spread(replace(settings, form="response", reward=reward), judge)

    def rank(prompts: Sequence[Prompt], prefix: Prefix, answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        images = [job.image(prompt.image) for prompt in prompts]
        ids = [[answer.ids for answer in some] for some in answers]
        return rewards(job.policy, judge.sentences, whole, prefix, ids, images, job.vocabulary)

    return rank


def pairs(trees: Sequence[Tree], settings: Settings, seed: int) -> list[Pair]:
    """(better, worse) answers, or next sentences, as (chosen, rejected).

    Their rewards differ by more than the margin, the least different ones are left out (`margin_quantile`), and the rest is
    balanced by length.
    """
    compare = best_against_worst if settings.pairs == "answer" else partial(next_sentences, greedy=settings.pairs == "greedy")
    found = [(pair, gap) for tree in trees for pair, gap in compare(tree) if _gain(pair) > settings.margin]
    clearest = sorted(range(len(found)), key=lambda i: -_gain(found[i][0]))
    kept = [found[i] for i in sorted(clearest[: math.ceil((1 - settings.margin_quantile) * len(found))])]
    return balance_lengths([pair for pair, _ in kept], [gap for _, gap in kept], settings.max_length_gap)


def _gain(pair: Pair) -> float:
    """How much more reward the chosen side has."""
    return (pair.chosen_score or 0.0) - (pair.rejected_score or 0.0)


def best_against_worst(tree: Tree) -> Iterator[tuple[Pair, int]]:
    """The tree's best and worst answer.

    With the difference of their lengths in tokens.
    """
    if tree.chosen is None or tree.rejected is None or tree.lengths is None:
        return
    scores = [tree.sentences[place].total for place in (tree.chosen, tree.rejected)]
    logps = tree.reference_logps and dict(zip(get_args(Side), tree.reference_logps, strict=True))
    yield _pair(tree, tree.id, (tree.chosen_text, tree.rejected_text), scores, logps), tree.lengths[0] - tree.lengths[1]


def next_sentences(tree: Tree, greedy: bool) -> Iterator[tuple[Pair, int]]:
    """Pairs of next sentences after the same beginning.

    With the difference of their lengths in tokens.

    The best and the worst one; with `greedy`, only after beginnings of the greedy answer, and the worse one is its own next
    sentence, if its reward is below the middle, 0. The end of an answer is never one of the two.
    """
    for parent in dict.fromkeys(sentence.parent for sentence in tree.sentences):
        before = tree.path(parent)
        spoken = [one for one in tree.sentences if one.parent == parent and one.image is not None]
        if not spoken or (greedy and any(tree.sentences[place].stream for place in before)):
            continue
        best, worst = max(spoken, key=reward_of), min(spoken, key=reward_of)
        if greedy:
            worst = next((one for one in spoken if one.stream == 0 and reward_of(one) < 0), best)
        if best.text == worst.text:
            continue
        beginning = [tree.sentences[place].text for place in before]
        texts = [" ".join([*beginning, one.text]) for one in (best, worst)]
        scores = [one.reward for one in (best, worst)]
        yield _pair(tree, f"{tree.id}/{parent}", texts, scores, ended=False), len(best.ids) - len(worst.ids)


def reward_of(sentence: Sentence) -> float:
    """A sound sentence's reward."""
    assert sentence.reward is not None
    return sentence.reward


def _pair(
    tree: Tree,
    id: str,
    texts: Sequence[str],
    scores: Sequence[float | None],
    logps: dict[str, float] | None = None,
    ended: bool = True,
) -> Pair:
    """A pair about a tree's image; texts and scores are those of the chosen and the rejected side."""
    return Pair(
        id=id,
        images=(tree.image,),
        prompt=tree.prompt,
        chosen=texts[0],
        rejected=texts[1],
        chosen_score=scores[0],
        rejected_score=scores[1],
        reference_logps=logps,
        ended=ended,
    )


def remarks(job: Job, trees: Sequence[Tree], made: Sequence[Pair]) -> Iterator[str]:
    """What pairs say about the model's own greedy answers.

    Of images for which these are known.

    Pairs about wild samples teach little about greedy answers. Chosen answers that are much shorter teach brevity.
    """
    greedy = {row.image: row for row in judge_of(job).checked}
    known = [pair for pair in made if pair.images[0] in greedy]
    if not known:
        return
    touching = fmean(_touches(job.vocabulary, pair, greedy[pair.images[0]].text) for pair in known)
    yield f"{touching:.0%} of the pairs disagree about an object that the model's greedy answer names."
    if not all(pair.ended for pair in known):
        return
    lengths = [fmean(len(job.policy.response_ids(pair.chosen)) for pair in known)]
    lengths.append(fmean(greedy[pair.images[0]].tokens for pair in known))
    if lengths[0] < SHORT * lengths[1]:
        yield (
            f"warning: chosen answers have {lengths[0]:.0f} tokens on average, the model's own greedy ones {lengths[1]:.0f}. "
            "Training on them may make answers shorter; over: sum and a smaller max_length_gap prevent that."
        )


def _touches(vocabulary: Vocabulary, pair: Pair, greedy: str) -> bool:
    """Whether one side names an object of the greedy answer that the other does not name."""
    named = [{mention.canonical for mention in vocabulary.mentions(text)} for text in (pair.chosen, pair.rejected, greedy)]
    return bool((named[0] ^ named[1]) & named[2])


def summary(trees: Sequence[Tree], made: Sequence[Pair]) -> str:
    """How many trees made a pair, and how streams did.

    Each stream's share of well-formed sentences, because a large diversity penalty breaks those of a confident model.
    """
    sentences = [sentence for tree in trees for sentence in tree.sentences]
    streams = sorted({sentence.stream for sentence in sentences})
    sound = [fmean(s.fate != "broken" for s in sentences if s.stream == stream) for stream in streams]
    sure = [fmean(s.logp / len(s.ids) for s in sentences if s.stream == stream) for stream in streams]
    each = ", ".join(f"{share:.0%} ({logp:.2f})" for share, logp in zip(sound, sure, strict=True))
    differing, cut = sum(tree.chosen is not None for tree in trees), sum(is_cut(tree) for tree in trees)
    made_of = (
        f"(every answer cut off: {cut}, no two different complete answers: {len(trees) - differing - cut}, left out for margin "
        f"or balance: {differing - len(made)})"
        if all(pair.ended for pair in made)
        else f"of next sentences, about {counted(len({pair.images for pair in made}), 'image')}"
    )
    gave = f"{counted(len(trees), 'tree')} gave {counted(len(made), 'pair')} {made_of}."
    return f"{gave} Well-formed sentences by stream, with their mean log-probability per token: {each}."


def is_cut(tree: Tree) -> bool:
    """Whether a tree's answers are all cut off."""
    fates = {sentence.fate for sentence in tree.sentences}
    return "cut" in fates and "final" not in fates


def round_figures(trees: Sequence[Tree], made: Sequence[Pair]) -> dict[str, Any]:
    """A round's cost, and means over its trees."""
    scores = {side: [score for tree in trees for score in _image_scores(tree, side)] for side in ("all", "chosen", "rejected")}
    lengths = [tree.lengths for tree in trees if tree.lengths is not None]
    return {
        "trees": len(trees),
        "tokens_sampled": sum(tree.tokens for tree in trees),
        "sentences_judged": len(scores["all"]),
        "image_score": {side: fmean(some) for side, some in scores.items()},
        "tokens": {"chosen": fmean(chosen for chosen, _ in lengths), "rejected": fmean(rejected for _, rejected in lengths)},
    }


def _image_scores(tree: Tree, side: str) -> list[float]:
    """The image scores of all sentences of a tree, or of its chosen or rejected answer."""
    end = {"chosen": tree.chosen, "rejected": tree.rejected}.get(side)
    places = range(len(tree.sentences)) if side == "all" else tree.path(end)
    return [score for place in places if (score := tree.sentences[place].image) is not None]


def picture(job: Job, settings: Settings) -> None:
    """Write `plots/csr.png`, `csr_rounds.png` and `csr.html`.

    One tree with its two answers, the reward over the rounds, and both as HTML.
    """
    plots, trees = job.run.plots, read_jsonl(job.run.rows("trees"), Tree)
    shown = [tree for tree in trees if tree.chosen is not None and tree.depth <= LEVELS] or trees
    tree = max(shown[:LOOKED_AT], key=lambda tree: len(tree.sentences))
    with open_image(job.image(tree.image)) as image:
        draw_tree(tree, image, TITLE, plots / "csr.png")
        parts = [fragment(tree, image, TITLE)]
    if settings.rounds > 1:
        rounds = parse_json(read_text(job.run.rounds), str(job.run.rounds))
        plot_rounds(rounds, plots / "csr_rounds.png")
        parts.append(rounds_in_html(rounds))
    write_atomically(plots / "csr.html", join(*parts))
