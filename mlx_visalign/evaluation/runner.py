"""Ask a policy about a benchmark's images, and turn its answers into figures with intervals.

Every image is read once: its description and all questions about it continue from the same prefix. Answers are greedy,
so an evaluation is the same at every run; they are kept, so that two evaluations can be compared image by image.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mlx_visalign.data.images import Picture
from mlx_visalign.data.records import Kind, Response
from mlx_visalign.evaluation import capability, chair, pope
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.bootstrap import (
    Counts,
    Interval,
    Metrics,
    Sums,
    intervals,
    mean_differences,
    mean_intervals,
    ratio,
)
from mlx_visalign.evaluation.capability import Exercise
from mlx_visalign.evaluation.pope import Question
from mlx_visalign.inference.policy import Policy
from mlx_visalign.inference.prefix_cache import Prefix
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.models.families.family import Features
from mlx_visalign.utils.arguments import DESCRIBE
from mlx_visalign.utils.console import progress
from mlx_visalign.utils.errors import UserError

Figures = dict[str, dict[str, Interval]]
"""By group ("length", "chair", "pope_random", "pope_popular", "pope_adversarial", "capability") and name ("recall", ..)."""

SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class Protocol:
    """What is asked, and how long answers may be, in tokens with the end token: a description, and what a question gets."""

    prompt: str = DESCRIBE
    max_tokens: int = 256
    question_tokens: int = 16


@dataclass(frozen=True)
class Evaluation:
    """A policy's answers about a benchmark."""

    benchmark: Benchmark
    protocol: Protocol
    responses: list[Response]

    def description(self, image: str) -> Response:
        return self.answer(image, self.protocol.prompt)

    def answer(self, image: str, prompt: str) -> Response:
        """Raises `UserError` where the answer is missing, as in responses read from another benchmark's file."""
        try:
            return self._answers[image, prompt]
        except KeyError:
            raise UserError(f"There is no answer about the image {image} to {prompt!r}. Evaluate again.") from None

    @cached_property
    def counts(self) -> dict[str, tuple[Counts, Metrics]]:
        """What was counted over the images, by group, with the function that makes figures of the sums."""
        groups: dict[str, tuple[Counts, Metrics]] = {"length": (self._lengths(), length_metrics)}
        benchmark = self.benchmark
        if benchmark.annotations:
            texts = {image: self.description(image).text for image in benchmark.pictures}
            groups["chair"] = chair.count(texts, benchmark.annotations, benchmark.vocabulary), chair.metrics
        for split, questions in benchmark.questions.items():
            answers = {asked.id: self.answer(asked.image, asked.prompt).text for asked in questions}
            groups[f"pope_{split}"] = pope.count(questions, answers)[0], pope.metrics
        if benchmark.exercises:
            said = {exercise.id: self.answer(exercise.image, exercise.prompt).text for exercise in benchmark.exercises}
            groups["capability"] = capability.count(benchmark.exercises, said), capability.metrics
        return groups

    @cached_property
    def figures(self) -> Figures:
        """Every figure with its 95 % bootstrap interval over images."""
        return {group: intervals(counts, metrics, SEED) for group, (counts, metrics) in self.counts.items()}

    @cached_property
    def _answers(self) -> dict[tuple[str, str], Response]:
        return {(response.image, response.prompt): response for response in self.responses}

    def _lengths(self) -> Counts:
        responses = [self.description(image) for image in self.benchmark.pictures]
        columns = {
            "texts": np.ones(len(responses), dtype=int),
            "tokens": np.array([response.tokens for response in responses]),
            "cut_off": np.array([int(not response.finished) for response in responses]),
        }
        return Counts(tuple(self.benchmark.pictures), columns)


def length_metrics(sums: Sums) -> dict[str, np.ndarray]:
    """What can be told without labels: the mean `tokens` of a description, and the share `cut_off` at max_tokens."""
    return {name: ratio(sums[name], sums["texts"]) for name in ("tokens", "cut_off")}


def changes(before: Evaluation, after: Evaluation) -> Figures:
    """Every figure of `after` minus that of `before`, paired by image, with its interval.

    Raises `UserError` where the two asked different things or looked at different images.
    """
    return mean_changes(before, [after])


def mean_changes(before: Evaluation, after: Sequence[Evaluation]) -> Figures:
    """As `changes`, of the mean over several trainings."""
    for one in after:
        if before.protocol != one.protocol or _asked(before.benchmark) != _asked(one.benchmark):
            raise UserError(
                "These evaluations asked different things: other questions, other images, or answers of another length. "
                "Evaluate both again."
            )
    return {
        group: mean_differences(counts, [one.counts[group][0] for one in after], metrics, SEED)
        for group, (counts, metrics) in before.counts.items()
    }


def mean_figures(several: Sequence[Evaluation]) -> Figures:
    """Every figure's mean over several trainings, its interval over images."""
    return {
        group: mean_intervals([one.counts[group][0] for one in several], metrics, SEED)
        for group, (_, metrics) in several[0].counts.items()
    }


def evaluate(
    policy: Policy, benchmark: Benchmark, protocol: Protocol | None = None, *, batch: int = 8, title: str = "evaluating"
) -> Evaluation:
    """The policy's answers about all images of the benchmark, `batch` images read together."""
    protocol = protocol or Protocol()
    images, ask = question_batches(policy, benchmark, protocol)
    responses: list[Response] = []
    with progress(title, len(images), unit="image") as bar:
        for start in range(0, len(images), batch):
            started = time.perf_counter()
            answers = ask(images[start : start + batch])
            rate = sum(answer.tokens for answer in answers) / (time.perf_counter() - started)
            responses += answers
            bar.advance(len(images[start : start + batch]), f"{rate:.0f} tokens/s")
    return Evaluation(benchmark, protocol, responses)


def question_batches(
    policy: Policy, benchmark: Benchmark, protocol: Protocol
) -> tuple[list[str], Callable[[Sequence[str]], list[Response]]]:
    """The images in the order to take them, and what asks the policy all there is to ask about some of them."""
    asked = _prompts(benchmark, [question for questions in benchmark.questions.values() for question in questions])
    exercises = _prompts(benchmark, benchmark.exercises)

    def ask(images: Sequence[str]) -> list[Response]:
        return _ask(policy, protocol, {image: benchmark.pictures[image] for image in images}, asked, exercises)

    # Images with as many questions share a batch, where the others would wait.
    return sorted(benchmark.pictures, key=lambda image: len(asked[image])), ask


def _asked(benchmark: Benchmark) -> tuple[object, ...]:
    return benchmark.questions, benchmark.exercises


def _prompts(benchmark: Benchmark, questions: Iterable[Question | Exercise]) -> dict[str, list[str]]:
    """The questions about each image, each once: POPE's splits share those about what is there."""
    prompts: dict[str, dict[str, None]] = {image: {} for image in benchmark.pictures}
    for asked in questions:
        prompts[asked.image][asked.prompt] = None
    return {image: list(unique) for image, unique in prompts.items()}


def _ask(
    policy: Policy,
    protocol: Protocol,
    pictures: Mapping[str, Picture],
    questions: Mapping[str, list[str]],
    exercises: Mapping[str, list[str]],
) -> list[Response]:
    """Read some images once, describe each and answer its questions."""
    shared, _ = split_prompt(policy, protocol.prompt)
    prefix = policy.prefill(features(policy, list(pictures.values())), [shared] * len(pictures))
    describe: dict[str, list[str]] = {image: [protocol.prompt] for image in pictures}
    exists, others = ({image: asked[image] for image in pictures} for asked in (questions, exercises))
    short = Sampling(protocol.question_tokens)
    return [
        *_answers(policy, prefix, describe, "describe", Sampling(protocol.max_tokens)),
        *_answers(policy, prefix, exists, "exists", short),
        *_answers(policy, prefix, others, "", short),
    ]


def _answers(policy: Policy, prefix: Prefix, prompts: dict[str, list[str]], kind: Kind, sampling: Sampling) -> list[Response]:
    """The answers to each image's prompts. `prefix` holds the images in the same order."""
    most = max(map(len, prompts.values()))
    if most == 0:
        return []
    # Every image gets as many rows; the short of questions are filled up with any, and those answers dropped.
    filler = next(prompt for asked in prompts.values() for prompt in asked)
    rows = [(image, prompt) for image, asked in prompts.items() for prompt in [*asked, *[filler] * (most - len(asked))]]
    wanted = [index < len(asked) for asked in prompts.values() for index in range(most)]
    answers = policy.ask(prefix, [split_prompt(policy, prompt)[1] for _, prompt in rows], sampling)
    return [
        Response(f"{image}/{prompt}", image, prompt, kind, "clean", answer.text, answer.finished, len(answer.ids))
        for (image, prompt), answer, kept in zip(rows, answers, wanted, strict=True)
        if kept
    ]


def split_prompt(policy: Policy, question: str) -> tuple[list[int], list[int]]:
    """A prompt's ids up to the end of the image, which all questions share, and those after it."""
    ids = policy.prompt_ids(question)
    after = len(ids) - ids[::-1].index(policy.image_token)
    return ids[:after], ids[after:]


def features(policy: Policy, pictures: Sequence[Picture]) -> Features:
    """The tower's features; those of files through the policy's cache."""
    paths = [picture for picture in pictures if isinstance(picture, str | Path)]
    drawn = [policy.pixels(picture) for picture in pictures if not isinstance(picture, str | Path)]
    if paths and drawn:
        raise ValueError("a benchmark holds files or pictures, not both")
    return policy.image_features(paths) if paths else policy.features(drawn)
