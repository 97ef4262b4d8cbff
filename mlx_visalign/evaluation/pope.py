"""POPE: yes/no questions about present and absent objects.

Source: Li et al. 2023, arXiv 2305.10355. Each image has as many questions about present as about absent objects; the absent
ones are
- random: drawn uniformly;
- popular: those in the most images;
- adversarial: for each present object asked about, its most frequent companion that is absent.
The present objects are the same in all three. The paper asks about 3 + 3 objects in 500 COCO images with more than 3 objects.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mlx_visalign.data.object_vocabulary import question
from mlx_visalign.data.records import Record
from mlx_visalign.evaluation.bootstrap import Counts, Sums, f1, ratio
from mlx_visalign.evaluation.object_labels import Annotations, ObjectCounts

Split = Literal["random", "popular", "adversarial"]
YesNo = Literal["yes", "no"]

SPECIAL_TOKEN = re.compile(r"<[^<>\s]*>")
NEGATIONS = {"no", "not", "none", "cannot"}


@dataclass(frozen=True)
class Question(Record):
    """A question about an image and its true answer."""

    id: str
    image: str
    prompt: str
    label: YesNo


def build_questions(
    annotations: Annotations, objects: Sequence[str], counts: ObjectCounts, split: Split, seed: int, per_image: int = 3
) -> list[Question]:
    """POPE's questions about every image.

    Up to `per_image` objects that are present, and as many of `objects` that are absent. `counts`, which may come from other
    images, determines which objects are frequent and which occur together.
    """
    questions = []
    for image, truth in annotations.items():
        rng = random.Random(f"{seed} {image}")
        absent = [name for name in objects if name not in truth]
        there = rng.sample(sorted(truth), min(per_image, len(truth), len(absent)))
        not_there = _not_there(there, absent, counts, split, rng)
        labels: list[tuple[str, YesNo]] = [*((name, "yes") for name in there), *((name, "no") for name in not_there)]
        questions += [
            Question(f"{image}/{split}/{number}", image, question(name), label) for number, (name, label) in enumerate(labels)
        ]
    return questions


def parse_answer(text: str, official: bool = False) -> YesNo:
    """Whether an answer says yes or no.

    If the first word is "yes" it is yes; otherwise a negation in the first sentence means no, and everything else yes. Special
    tokens, case and punctuation are ignored. `official` is the exact rule of LLaVA's and SeVa's scripts (haotian-liu/LLaVA,
    llava/eval/eval_pope.py), by which "NO." and "No</s>" are a yes.
    """
    if official:
        words = text.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "not", "no"} & set(words) else "yes"
    sentence = SPECIAL_TOKEN.sub(" ", text).split(".")[0].lower().replace("\u2019", "'")
    words = re.findall(r"[a-z']+", sentence)
    if words[:1] == ["yes"]:
        return "yes"
    return "no" if any(word in NEGATIONS or word.endswith("n't") for word in words) else "yes"


def count(questions: Iterable[Question], answers: Mapping[str, str], official: bool = False) -> tuple[Counts, list[str]]:
    """Count answers per image, and list unanswered questions.

    `answers` are by the question's id. Questions without an answer are not counted; callers should report them.
    """
    rows: dict[str, dict[str, int]] = {}
    missing = []
    for asked in questions:
        if asked.id not in answers:
            missing.append(asked.id)
            continue
        row = rows.setdefault(asked.image, {"true_yes": 0, "false_yes": 0, "true_no": 0, "false_no": 0})
        said = parse_answer(answers[asked.id], official)
        row[f"{'true' if said == asked.label else 'false'}_{said}"] += 1
    names = ("true_yes", "false_yes", "true_no", "false_no")
    return Counts(tuple(rows), {name: np.array([row[name] for row in rows.values()], dtype=int) for name in names}), missing


def metrics(sums: Sums) -> dict[str, Float[np.ndarray, "d"]]:
    """POPE's metrics from summed counts, "yes" being positive.

    A ratio with denominator 0 is 0.

    accuracy   correct answers / answers
    precision  correct yeses / yeses
    recall     correct yeses / questions about present objects (the true positive rate)
    f1         harmonic mean of precision and recall
    yes_rate   yeses / answers
    """
    true_yes, false_yes, true_no, false_no = (sums[name] for name in ("true_yes", "false_yes", "true_no", "false_no"))
    answers = true_yes + false_yes + true_no + false_no
    precision, recall = ratio(true_yes, true_yes + false_yes), ratio(true_yes, true_yes + false_no)
    return {
        "accuracy": ratio(true_yes + true_no, answers),
        "precision": precision,
        "recall": recall,
        "f1": f1(precision, recall),
        "yes_rate": ratio(true_yes + false_yes, answers),
    }


def _not_there(there: list[str], absent: list[str], counts: ObjectCounts, split: Split, rng: random.Random) -> list[str]:
    """As many absent objects as present ones, chosen by the rule of the split."""
    if split == "random":
        return rng.sample(absent, len(there))
    # Objects missing from the counts come last, so that there are always enough.
    ranked = list(dict.fromkeys([*(name for name in counts.popular() if name in absent), *absent]))
    if split == "popular":
        return ranked[: len(there)]
    chosen: list[str] = []
    for present in there:
        companions = [name for name in counts.companions(present) if name in absent]
        chosen.append(next(name for name in (*companions, *ranked) if name not in chosen))
    return chosen
