"""Which pairs are trained on, whatever method made them, and whether they are enough."""

from collections.abc import Sequence

from mlx_visalign.data.records import Pair, Prompt
from mlx_visalign.utils.console import say
from mlx_visalign.utils.formatting import counted

FEW = 0.2  # of the images


def even_lengths(gaps: Sequence[int], largest: float) -> list[int]:
    """Which pairs to keep so that chosen and rejected answers are equally long in the mean, without looking at them.

    `gaps` are the chosen answer's tokens minus the rejected one's. While their mean is more than `largest` away from 0,
    the pair that is furthest off to that side is dropped. Summed log-probabilities reward length, so a gap teaches to say
    more or to say less, whatever the image shows. Returns indices in their order.
    """
    kept = sorted(range(len(gaps)), key=lambda i: gaps[i])
    total = sum(gaps)
    while kept and abs(total) > largest * len(kept):
        total -= gaps[kept.pop(-1 if total > 0 else 0)]
    return sorted(kept)


def warn_if_few(pairs: Sequence[Pair], prompts: Sequence[Prompt], cure: str) -> None:
    """Say it where the pairs are about few of the images that were asked about; `cure` is what makes more of them."""
    asked, paired = {prompt.image for prompt in prompts}, {image for pair in pairs for image in pair.images}
    if len(paired) < FEW * len(asked):
        say(
            f"warning: only {len(paired)} of {counted(len(asked), 'image')} gave a pair ({counted(len(pairs), 'pair')} in "
            f"all), which is little to learn from. {cure}"
        )
