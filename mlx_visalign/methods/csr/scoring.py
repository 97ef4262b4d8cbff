"""Samples answers and scores every sentence, into `rewards.Tree`s.

Image and prompt are prefilled once. From there trees grow (or complete answers are sampled), every new sentence is scored,
and the best and the worst answer are scored under the policy while the prefix is still cached.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Literal

import mlx.core as mx
import numpy as np

from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.data.records import Prompt
from mlx_visalign.inference.policy import Policy
from mlx_visalign.inference.prefix_cache import Prefix
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.csr.rewards import (
    AMONG_SIBLINGS,
    Fate,
    RewardSettings,
    Sentence,
    Tree,
    answer_reward,
    is_broken,
    language_score,
    sibling_rewards,
    survivors,
)
from mlx_visalign.methods.csr.sentence_tree import Growth, Node, Stops, chain, grow
from mlx_visalign.preflight.workload import Answering
from mlx_visalign.scorers import Score
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import require


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are sampled and scored.

    form             sentence: a tree for every prompt; response: `samples` complete answers, sampled with `temperature`
                     and `top_p`
    num_beam_groups, diversity_penalty, sentence_tokens, max_tokens
                     how a tree grows, as in `sentence_tree.Growth`; max_tokens also limits a sampled answer
    prune            by which score: the reward, or the language score alone
    keep_best, keep_worst
                     how many open sentences of a level keep growing, once there are as many as `num_beam_groups`
    keep_greedy      the model's greedy answer, the first stream of every level, keeps growing too
    reward           how sentences and answers are rewarded
    """

    form: Literal["sentence", "response"] = "sentence"
    num_beam_groups: int = 5
    diversity_penalty: float = 3.0
    sentence_tokens: int = 70
    max_tokens: int = 256
    prune: Literal["reward", "language"] = "reward"
    keep_best: int = 1
    keep_worst: int = 2
    keep_greedy: bool = False
    samples: int = 6
    temperature: float = 1.0
    top_p: float = 1.0
    reward: RewardSettings = field(default_factory=RewardSettings)

    def __post_init__(self) -> None:
        require(
            self,
            samples=(self.samples >= 2, "2 or more"),
            keep_best=(self.keep_best >= 0, "0 or more"),
            keep_worst=(self.keep_worst >= 0, "0 or more"),
        )
        if self.keep_best + self.keep_worst < 1:
            raise UserError("keep_best and keep_worst are both 0; one of them must be 1 or more.")
        if self.form == "response" and (self.reward.kind in AMONG_SIBLINGS or self.temperature == 0):
            raise UserError("form: response needs a temperature above 0, and reward.kind paper or calibrated.")
        _ = self.growth, self.sampling  # checks their ranges

    @property
    def growth(self) -> Growth:
        return Growth(self.num_beam_groups, self.diversity_penalty, self.sentence_tokens, self.max_tokens)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_tokens, self.temperature, self.top_p)

    @property
    def tokens_at_most(self) -> int:
        """Upper bound on the tokens sampled for a prompt."""
        return self.streams * self.longest

    @property
    def longest(self) -> int:
        """Upper bound on an answer's tokens.

        A sentence that begins before `max_tokens` is not cut off there.
        """
        return self.max_tokens if self.form == "response" else self.max_tokens - 1 + self.sentence_tokens

    @property
    def widest(self) -> int:
        """Upper bound on a level's survivors (`rewards.survivors`)."""
        return max(self.num_beam_groups - 1, self.keep_best + self.keep_worst + self.keep_greedy)

    @property
    def streams(self) -> int:
        """Upper bound on answers decoded at once per prompt."""
        return self.samples if self.form == "response" else self.num_beam_groups * self.widest

    def answering(self, title: str, prompts: int, together: int) -> Answering:
        """The sampling stage for `prompts` prompts, with full-size trees."""
        held = 0 if self.form == "response" else self.widest * (self.max_tokens - 1)
        read = self.samples if self.form == "response" else 2  # all samples, or the best and the worst
        sampled = prompts * self.tokens_at_most
        drawn = self.form == "response"
        return Answering(title, prompts, sampled, together, self.longest, self.streams, drawn, held, read)


def answer(
    policy: Policy,
    score: Score,
    settings: AnswerSettings,
    prompts: Sequence[Prompt],
    images: Sequence[Path],
    vocabulary: Vocabulary,
    keys: Callable[[Prompt, int], mx.array],
) -> list[Tree]:
    """A tree for every prompt.

    `vocabulary` finds objects that a sentence repeats; `keys(prompt, n)` is the random key of its n-th sampled answer.
    """
    prefix = policy.prefill(policy.image_features(images), [policy.prompt_ids(prompt.prompt) for prompt in prompts])
    scorer = _SentenceScorer(policy, score, settings, images, vocabulary)
    if settings.form == "sentence":
        trees = grow(policy.decoder, prefix, scorer.stops, settings.growth, scorer.keep)
    else:
        drawn = _draw(policy, prefix, settings, [keys(p, n) for p in prompts for n in range(settings.samples)])
        trees = _unforked(policy, prefix, drawn, scorer.stops)
        scorer.keep(trees)
    ends = [scorer.best_and_worst(nodes) for nodes in trees]
    texts = [[policy.tokenizer.decode(node.answer, skip_special_tokens=True).strip() for node in two] for two in ends]
    ids = [[policy.response_ids(text) for text in two] or [[policy.end]] * 2 for two in texts]
    logps = np.array(policy.score(prefix, ids), dtype=np.float64).tolist()
    rows = zip(prompts, trees, ends, texts, ids, logps, strict=True)
    return [_tree(scorer, prompt, nodes, two, two_texts, some, sums) for prompt, nodes, two, two_texts, some, sums in rows]


def rewards(
    policy: Policy,
    score: Score,
    settings: AnswerSettings,
    prefix: Prefix,
    answers: Sequence[list[list[int]]],
    images: Sequence[Path],
    vocabulary: Vocabulary,
) -> list[list[float]]:
    """Rewards of complete answers, the same number per prompt.

    -inf for a broken answer, and for one without an end token.
    """
    scorer = _SentenceScorer(policy, score, settings, images, vocabulary)
    trees = _unforked(policy, prefix, answers, scorer.stops)
    scorer.keep(trees)
    return [[scorer.worth(node) for node in {node.stream: node for node in nodes}.values()] for nodes in trees]


def full_stop(policy: Policy) -> int:
    """The token that ends a sentence, ".".

    Longer tokens that contain a full stop, such as "...", do not end a sentence.
    """
    token = policy.tokenizer.convert_tokens_to_ids(".")
    if token in (None, policy.tokenizer.unk_token_id):
        raise UserError("CSR splits answers at the token '.', which this model's tokenizer does not have.")
    return token


def _draw(policy: Policy, prefix: Prefix, settings: AnswerSettings, keys: list[mx.array]) -> list[list[list[int]]]:
    """The tokens of sampled answers, `samples` per prompt."""
    answers = [answer.ids for answer in policy.generate(prefix, settings.sampling, keys, settings.samples)]
    return [answers[start : start + settings.samples] for start in range(0, len(answers), settings.samples)]


def _unforked(policy: Policy, prefix: Prefix, answers: Sequence[list[list[int]]], stops: Stops) -> list[list[Node]]:
    """Complete answers, the same number per prompt, as trees that fork only at the root."""
    logps = np.array(policy.read(prefix, list(answers)).logps).tolist()
    trees = []
    for prompt, some in enumerate(answers):
        of_these = logps[prompt * len(some) :]
        trees.append([node for n, ids in enumerate(some) for node in chain(prompt, n, ids, of_these[n][: len(ids)], stops)])
    return trees


@dataclass
class _SentenceScore:
    """A node's scores; see `Sentence`."""

    text: str
    fate: Fate
    image: float | None = None
    reward: float | None = None
    total: float | None = None


class _SentenceScorer:
    """Scores new nodes level by level, and decides which keep growing."""

    def __init__(self, policy: Policy, score: Score, settings: AnswerSettings, images: Sequence[Path], vocabulary: Vocabulary):
        self.score, self.settings, self.images, self.tokenizer = score, settings, images, policy.tokenizer
        self.vocabulary = vocabulary
        self.stops = Stops(full_stop(policy), policy.end)
        self.scored: dict[Node, _SentenceScore] = {}

    def keep(self, level: list[list[Node]]) -> list[list[Node]]:
        """Score every prompt's new nodes; return those that keep growing.

        Parents must come before their children.
        """
        nodes = [node for some in level for node in some]
        texts = self.tokenizer.batch_decode([node.ids for node in nodes], skip_special_tokens=True)
        for node, text in zip(nodes, texts, strict=True):
            self.scored[node] = _SentenceScore(text.strip(), self._fate(node))
            if not self._is_sound(node):
                self.scored[node].fate = "broken"
        spoken = [node for node in nodes if self.scored[node].fate != "broken" and node.ids != (self.stops.end,)]
        scores = self.score([self.images[n.prompt] for n in spoken], [self.scored[n].text for n in spoken])
        for node, score in zip(spoken, scores, strict=True):
            self.scored[node].image = score
        for _, siblings in groupby(nodes, key=lambda node: id(node.parent)):
            self._reward(list(siblings))
        return [self._grow_on([node for node in some if self.scored[node].fate == "pruned"]) for some in level]

    def best_and_worst(self, nodes: Sequence[Node]) -> list[Node]:
        """The last nodes of the best and the worst answer.

        Ties go to the first, on both sides: the last of equally bad answers is the longest, and pairs would teach the model
        to stop early. None if all answers are the same text. Only answers that the model itself ended count: training
        appends an end token, and after any other answer that would teach the model to stop where it did not.
        """
        whole = [node for node in nodes if self.scored[node].fate == "final"]
        if not whole:
            return []
        best, worst = max(whole, key=self._total_of), min(whole, key=self._total_of)
        return [] if self._said(best) == self._said(worst) else [best, worst]

    def worth(self, node: Node) -> float:
        """The reward of the answer that ends at this node."""
        total = self.scored[node].total
        return total if total is not None and node.ids[-1] == self.stops.end else -math.inf

    def _fate(self, node: Node) -> Fate:
        """The fate of a sound node, before survivors are chosen."""
        if node.ids[-1] == self.stops.end:
            return "final"
        return "cut" if node.final else "pruned"

    def _is_sound(self, node: Node) -> bool:
        """Not broken, and not after a broken one; an end token alone is sound where a sentence comes before it."""
        if node.parent in self.scored and self.scored[node.parent].fate == "broken":
            return False
        return len(node.path) > 1 if node.ids == (self.stops.end,) else not is_broken(self.scored[node].text)

    def _reward(self, siblings: list[Node]) -> None:
        """Reward one node's children, and the answers that end with them."""
        sound = [node for node in siblings if self.scored[node].fate != "broken"]
        kind = self.settings.reward.language
        language = [language_score(node.logps, node.penalised, kind) for node in sound]
        texts, images = [self.scored[node].text for node in sound], [self.scored[node].image for node in sound]
        rewards = sibling_rewards(texts, language, images, self.settings.reward)
        for node, reward in zip(sound, rewards, strict=True):
            scored = self.scored[node]
            scored.reward = reward - self.settings.reward.repeat_penalty * self._is_repeat(node)
            scored.total = answer_reward([self._reward_of(n) for n in node.path], self.settings.reward.over)

    def _grow_on(self, open_nodes: list[Node]) -> list[Node]:
        by_language = self.settings.prune == "language"
        scores = [sum(fmean(n.penalised) for n in node.path) if by_language else self._total_of(node) for node in open_nodes]
        kept = survivors(scores, self.settings.num_beam_groups, self.settings.keep_best, self.settings.keep_worst)
        if self.settings.keep_greedy:
            greedy = [place for place, node in enumerate(open_nodes) if not any(one.stream for one in node.path)]
            kept = list(dict.fromkeys([*kept, *greedy]))
        for place in kept:
            self.scored[open_nodes[place]].fate = "grown"
        return [open_nodes[place] for place in kept]

    def _is_repeat(self, node: Node) -> bool:
        """Whether a sentence names objects, and all of them were named before in its answer."""
        *before, now = ({m.canonical for m in self.vocabulary.mentions(self.scored[n].text)} for n in node.path)
        return bool(now) and now <= set().union(*before)

    def _said(self, node: Node) -> list[str]:
        """The sentences of the answer up to this node."""
        return [text for n in node.path if (text := self.scored[n].text)]

    def _reward_of(self, node: Node) -> float:
        reward = self.scored[node].reward
        assert reward is not None  # every sound node has one
        return reward

    def _total_of(self, node: Node) -> float:
        total = self.scored[node].total
        assert total is not None  # every sound node has one
        return total


def _tree(
    scorer: _SentenceScorer,
    prompt: Prompt,
    nodes: list[Node],
    ends: list[Node],
    texts: list[str],
    ids: list[list[int]],
    logps: list[float],
) -> Tree:
    """The record of a tree. `ends`, `texts`, `ids` and `logps` belong to the best and the worst answer."""
    places = {node: place for place, node in enumerate(nodes)}
    sentences = tuple(
        Sentence(
            parent=places.get(node.parent, -1) if node.parent is not None else -1,
            stream=node.stream,
            ids=node.ids,
            logp=sum(node.logps),
            penalised=sum(node.penalised),
            **vars(scorer.scored[node]),
        )
        for node in nodes
    )
    tree = Tree(prompt.id, prompt.image, prompt.prompt, sum(len(node.ids) for node in nodes), sentences)
    if not ends:
        return tree
    chosen, rejected = (places[node] for node in ends)
    return replace(
        tree,
        chosen=chosen,
        rejected=rejected,
        chosen_text=texts[0],
        rejected_text=texts[1],
        lengths=(len(ids[0]), len(ids[1])),
        reference_logps=(logps[0], logps[1]),
    )
