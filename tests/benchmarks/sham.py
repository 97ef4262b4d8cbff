"""A sham training: the untrained model, with another threshold for saying yes.

Alignment may do no more than make a model say yes less often, which helps where it says yes too often. The sham has no
training: it says yes where the untrained model's log-odds of yes exceed a threshold, such that over one half of the images it
says yes as often as the trained model does there; answers about the other half are its answers. And the other way round.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mlx_visalign.evaluation.pope import Question, parse_answer
from mlx_visalign.evaluation.runner import Evaluation
from mlx_visalign.inference.policy import Policy
from mlx_visalign.pipeline.best_of_n import as_files
from mlx_visalign.scorers.self_check import yes_over_no


def sham(policy: Policy, base: Evaluation, trained: Evaluation, folder: Path) -> Evaluation:
    """The base's evaluation, its answers to yes/no questions replaced by the sham's."""
    images = as_files(base.benchmark, folder)
    by_image: dict[str, list[Question]] = {image: [] for image in images}
    for questions in base.benchmark.questions.values():
        for asked in questions:
            by_image[asked.image].append(asked)
    odds = {
        (image, asked.prompt): odd
        for image, questions in by_image.items()
        for asked, odd in zip(questions, yes_over_no(policy, images[image], [q.prompt for q in questions]), strict=True)
    }
    halves = [set(list(images)[start::2]) for start in (0, 1)]
    said = {}
    for one, other in (halves, halves[::-1]):
        there = [key for key in odds if key[0] in one]
        rate = np.mean([parse_answer(trained.answer(*key).text) == "yes" for key in there])
        threshold = np.quantile([odds[key] for key in there], 1 - rate)
        said |= {key: "Yes." if odds[key] > threshold else "No." for key in odds if key[0] in other}
    responses = [replace(row, text=said.get((row.image, row.prompt), row.text)) for row in base.responses]
    return Evaluation(base.benchmark, base.protocol, responses)
