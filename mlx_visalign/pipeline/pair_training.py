"""Training on a file of pairs: reading, workload, reference scores."""

from collections.abc import Sequence
from pathlib import Path

from mlx_visalign.data.image_folder import content_id
from mlx_visalign.data.pair_formats import PlacedPair, read_placed_pairs
from mlx_visalign.data.records import Pair
from mlx_visalign.inference.policy import Policy
from mlx_visalign.methods.job import Job
from mlx_visalign.models.adapter_files import WEIGHTS
from mlx_visalign.pipeline.prompts_stage import images_of_run
from mlx_visalign.preflight.workload import Workload, reference_scoring
from mlx_visalign.runs.run import Run
from mlx_visalign.runs.run_folder import RunFolder
from mlx_visalign.runs.stage import fingerprint
from mlx_visalign.training.dpo import PreferenceSettings
from mlx_visalign.utils.errors import UserError

REFERENCE_BATCH = 8  # pairs scored together


def read_pairs(data: str, images: Path | None, skip_bad: bool) -> tuple[list[PlacedPair], str]:
    """The pairs with their places, and their format's name.

    For a file in a run's folder, images are also looked up where the run's images are.
    """
    file = Path(data)
    return read_placed_pairs(file, images, skip_bad, images_of_run(file.parent))


def workload_of(pairs: Sequence[Pair], settings: PreferenceSettings, longest: int) -> Workload:
    """The work of training on pairs: reference scoring, then updates."""
    stage = reference_scoring(settings.loss, len(pairs), REFERENCE_BATCH, longest)
    return Workload((stage,), settings.prompts_trained(len(pairs)))


def score_reference(policy: Policy, pairs: Sequence[Pair], settings: PreferenceSettings, run: Run, seed: int) -> list[Pair]:
    """The pairs with reference log-probabilities, as a stage."""
    job, contents = Job(run, policy, [], seed), _contents(pairs)
    return job.scored(pairs, "pairs", settings.loss, seed, REFERENCE_BATCH, image_contents=contents)


def require_own(folder: Path) -> None:
    """Raise `UserError` for a folder with another command's adapter.

    `train` writes its adapter to --adapter-path, which other commands read from, and must not overwrite theirs.
    """
    if (folder / WEIGHTS).exists() and not RunFolder(folder).pairs()[0].exists():
        raise UserError(f"{folder} has an adapter that `visalign train` did not make. Choose another --adapter-path.")


def _contents(pairs: Sequence[Pair]) -> str:
    """A fingerprint of the contents of the pairs' images."""
    images = dict.fromkeys(image for pair in pairs for image in pair.images)
    return fingerprint([content_id(Path(image)) for image in images])
