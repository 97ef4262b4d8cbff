"""Eight answers to one photo and prompt: together from one prefill (N=8), and one after the other, each by itself (N=1)."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from meter import Meter, report
from shape import given

from mlx_visalign.inference.policy import load
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.utils.seeding import key_for

ANSWERS = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, required=True, help="of each answer")
    options = parser.parse_args()
    policy, pair = load(options.folder), given(options.folder)
    policy.end = -1  # a random model should not end early
    sampling = Sampling(options.tokens, temperature=1.0)
    keys = [key_for(0, "answer", index) for index in range(ANSWERS)]
    features = policy.image_features([pair.image])

    def answers(some: list) -> list[list[int]]:
        prefix = policy.prefill(features, [pair.prompt_ids])
        return [answer.ids for answer in policy.generate(prefix, sampling, some, copies=len(some))]

    meter = Meter()
    answers(keys[:1])
    meter.mark()
    together = answers(keys)
    meter.mark()
    apart = [answers([key])[0] for key in keys]
    meter.mark()
    seconds = meter.steps()
    figures = {meter: {"together": both[0], "apart": both[1]} for meter, both in seconds.items()}
    report(("mlx", "mlx-visalign"), same=together == apart, memory=meter.memory(), **figures)


if __name__ == "__main__":
    main()
