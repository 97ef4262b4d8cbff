"""Cached evaluations, one stage file each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_visalign.data.image_folder import content_id
from mlx_visalign.data.records import Response
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.runner import Evaluation, Protocol, question_batches
from mlx_visalign.methods.job import Job, Rank
from mlx_visalign.pipeline.best_of_n import SAMPLES, as_files, best_of, with_descriptions
from mlx_visalign.runs.stage import fingerprint

READ_TOGETHER = 8  # images


def measure(job: Job, benchmark: Benchmark, moment: str, depends: Mapping[str, Any], protocol: Protocol) -> Evaluation:
    """Evaluate the policy; its answers are kept in MOMENT.jsonl.

    `depends` identifies the policy, for example by its adapter's fingerprint.
    """
    images, ask = question_batches(job.policy, benchmark, protocol)
    return Evaluation(benchmark, protocol, _kept(job, benchmark, protocol, moment, images, ask, depends))


def measure_best(job: Job, rank: Rank, base: Evaluation, moment: str, ranked_by: Mapping[str, Any]) -> Evaluation:
    """The untrained policy's evaluation, with best-of-n descriptions.

    `ranked_by` identifies `rank` in the stage's settings.
    """
    benchmark, protocol = base.benchmark, base.protocol
    images = as_files(benchmark, job.run.folder / "images")
    describe = best_of(job, rank, images, protocol)
    depends = {**ranked_by, "seed": job.seed, "samples": SAMPLES}
    return with_descriptions(base, _kept(job, benchmark, protocol, moment, list(images), describe, depends))


def contents(benchmark: Benchmark) -> dict[str, str]:
    """Fingerprints of a benchmark's questions and image files.

    They distinguish benchmarks of the same name.
    """
    asked = [question for questions in benchmark.questions.values() for question in questions]
    files = [content_id(picture) for picture in benchmark.pictures.values() if isinstance(picture, Path)]
    return {"questions": fingerprint([*asked, *benchmark.exercises]), "image_contents": fingerprint(files)}


def _kept(
    job: Job,
    benchmark: Benchmark,
    protocol: Protocol,
    moment: str,
    images: list[str],
    ask: Callable[[Sequence[str]], list[Response]],
    depends: Mapping[str, Any],
) -> list[Response]:
    about = {"benchmark": benchmark.name, "exercises": len(benchmark.exercises), "protocol": vars(protocol)}
    return job.run.records(
        Response,
        moment,
        images,
        lambda some: [response.to_row() for response in ask(some)],
        settings={**job.about(), **about, **depends},
        batch=READ_TOGETHER,
        title=f"{moment}, {benchmark.name}",
    )
