"""What a method gets: a run's folder, the policy to train, prompts about unlabelled images, and a seed."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_visalign.policy import Policy
from mlx_visalign.records import Pair, Prompt
from mlx_visalign.run import Run


@dataclass(frozen=True)
class Alignment:
    """One alignment. Image paths in prompts, responses and pairs are absolute or relative to the run's folder."""

    run: Run
    policy: Policy
    prompts: list[Prompt]
    seed: int
    held_out: list[Prompt] = field(default_factory=list)  # about images that are not trained on
    on_metrics: Callable[[dict[str, Any]], None] | None = None

    def image(self, path: str) -> Path:
        return self.run.folder / path

    def located(self, pair: Pair) -> Pair:
        """The pair with its images' paths as they are from here."""
        return replace(pair, images=tuple(str(self.image(image)) for image in pair.images))

    def about(self) -> dict[str, Any]:
        """What the model's answers depend on, whatever is asked of it."""
        policy = self.policy
        return {
            "base": policy.base,
            "template": policy.template,
            "aspect": policy.preprocessing.aspect,
            "dtype": policy.dtype,
        }
