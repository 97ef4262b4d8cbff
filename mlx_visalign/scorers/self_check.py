"""The model's own yes or no, as a scorer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_visalign.data.object_vocabulary import question
from mlx_visalign.inference.policy import Policy, split_prompt


@dataclass(frozen=True)
class SelfCheck:
    """Scores objects by the policy's belief that they are there.

        log p(yes) - log p(no), for the first token of its answer, in nats

    The untrained policy answers, whatever has been trained since. All questions about an image share its prefix.
    """

    policy: Policy

    def __call__(self, images: Sequence[Path], objects: Sequence[str]) -> list[float]:
        """One score per (image, object); objects of one image are best adjacent."""
        with self.policy.adapter_off():
            scores: list[float] = []
            for image, rows in groupby(zip(images, objects, strict=True), key=lambda row: row[0]):
                scores += yes_over_no(self.policy, image, [question(name) for _, name in rows])
        return scores


def yes_over_no(policy: Policy, image: Path, questions: Sequence[str]) -> list[float]:
    """log p(yes) - log p(no) for each question, in nats."""
    if not questions:
        return []
    asked = [split_prompt(policy, one) for one in questions]
    prefix = policy.prefill(policy.image_features([image]), [asked[0][0]])
    states = policy.read(prefix, [[after for _, after in asked]]).states
    last = mx.stack([states[row, len(after)] for row, (_, after) in enumerate(asked)])
    logits = policy.decoder.head(last).astype(mx.float32)
    yes, no = (logits[:, policy.response_ids(word)[0]] for word in ("Yes", "No"))
    return np.array(yes - no).astype(float).tolist()
