"""Runs a benchmark on a policy and computes its metrics.

Every image is prefilled once: its description and the answers to all questions about it share the prefix. Answers are greedy,
so an evaluation is reproducible; they are kept, so that two evaluations can be compared image by image.
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
from mlx_visalign.inference.policy import Policy, split_prompt
from mlx_visalign.inference.prefix_cache import Prefix
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.models.families.family import Features
from mlx_visalign.utils.arguments import DESCRIBE
from mlx_visalign.utils.console import progress
from mlx_visalign.utils.errors import UserError

Figures = dict[str, dict[str, Interval]]
"""Metrics by group ("length", "chair", "pope_random", "pope_popular", "pope_adversarial", "capability") and name."""

SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class Protocol:
    """The prompt for descriptions and the limits of answers.

    `max_tokens` limits a description and `question_tokens` the answer to a question; both count the end token.
    """

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
        """The response to a prompt about an image.

        Raises `UserError` if it is missing, as in responses from another benchmark's file.
        """
        try:
            return self._answers[image, prompt]
        except KeyError:
            raise UserError(f"The answer to {prompt!r} about the image {image} is missing. Evaluate again.") from None

    @cached_property
    def counts(self) -> dict[str, tuple[Counts, Metrics]]:
        """Counts per group, with the group's metrics function."""
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
        """All metrics with 95 % bootstrap intervals over images."""
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
    """Metrics that need no labels.

    The mean `tokens` of a description, and the share `cut_off` at max_tokens.
    """
    return {name: ratio(sums[name], sums["texts"]) for name in ("tokens", "cut_off")}


def changes(before: Evaluation, after: Evaluation) -> Figures:
    """Changes of all metrics with intervals, paired by image.

    `after` minus `before`. Raises `UserError` if the two have different questions or images.
    """
    return mean_changes(before, [after])


def mean_changes(before: Evaluation, after: Sequence[Evaluation]) -> Figures:
    """As `changes`, for the mean over several trainings."""
    for one in after:
        if before.protocol != one.protocol or _asked(before.benchmark) != _asked(one.benchmark):
            raise UserError(
                "These evaluations cannot be compared: their questions, images or maximum answer lengths differ. Evaluate both "
                "again with the same ones."
            )
    return {
        group: mean_differences(counts, [one.counts[group][0] for one in after], metrics, SEED)
        for group, (counts, metrics) in before.counts.items()
    }


def mean_figures(several: Sequence[Evaluation]) -> Figures:
    """Each metric's mean over trainings, with intervals over images."""
    return {
        group: mean_intervals([one.counts[group][0] for one in several], metrics, SEED)
        for group, (_, metrics) in several[0].counts.items()
    }


def evaluate(
    policy: Policy, benchmark: Benchmark, protocol: Protocol | None = None, *, batch: int = 8, title: str = "evaluating"
) -> Evaluation:
    """Run a benchmark, `batch` images at a time."""
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
    """The images in processing order, and a function to ask.

    The function asks the policy all questions about some of the images.
    """
    asked = _prompts(benchmark, [question for questions in benchmark.questions.values() for question in questions])
    exercises = _prompts(benchmark, benchmark.exercises)

    def ask(images: Sequence[str]) -> list[Response]:
        return _ask(policy, protocol, {image: benchmark.pictures[image] for image in images}, asked, exercises)

    # Sorted, so that images in a batch have equally many questions and none waits for the others.
    return sorted(benchmark.pictures, key=lambda image: len(asked[image])), ask


def _asked(benchmark: Benchmark) -> tuple[object, ...]:
    return benchmark.questions, benchmark.exercises


def _prompts(benchmark: Benchmark, questions: Iterable[Question | Exercise]) -> dict[str, list[str]]:
    """The distinct questions about each image: POPE's splits share those about present objects."""
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
    """Prefill some images, describe each and answer its questions."""
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
    """The answers to each image's prompts, whose order is that of `prefix`."""
    most = max(map(len, prompts.values()))
    if most == 0:
        return []
    # Every image needs the same number of rows: images with fewer questions get filler ones, whose answers are dropped.
    filler = next(prompt for asked in prompts.values() for prompt in asked)
    rows = [(image, prompt) for image, asked in prompts.items() for prompt in [*asked, *[filler] * (most - len(asked))]]
    wanted = [index < len(asked) for asked in prompts.values() for index in range(most)]
    answers = policy.ask(prefix, [split_prompt(policy, prompt)[1] for _, prompt in rows], sampling)
    return [
        Response(f"{image}/{prompt}", image, prompt, kind, "clean", answer.text, answer.finished, len(answer.ids))
        for (image, prompt), answer, kept in zip(rows, answers, wanted, strict=True)
        if kept
    ]


def features(policy: Policy, pictures: Sequence[Picture]) -> Features:
    """Vision features; those of files are cached by the policy."""
    paths = [picture for picture in pictures if isinstance(picture, str | Path)]
    drawn = [policy.pixels(picture) for picture in pictures if not isinstance(picture, str | Path)]
    if paths and drawn:
        raise ValueError("a benchmark must have either files or pictures, not both")
    return policy.image_features(paths) if paths else policy.features(drawn)
