"""Best-of-n baseline, without training.

The method's own reward picks among n samples of the untrained model. Training is worthwhile only if it beats this, or
matches it with one answer instead of eight.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_visalign.data.images import open_image
from mlx_visalign.data.records import Prompt, Response
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.runner import Evaluation, Protocol
from mlx_visalign.inference.policy import Answer
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.job import Job, Rank
from mlx_visalign.utils.files import replacing
from mlx_visalign.utils.seeding import key_for

SAMPLES = 8  # at temperature 1


def best_of(job: Job, rank: Rank, images: dict[str, Path], protocol: Protocol) -> Callable[[Sequence[str]], list[Response]]:
    """A function that describes images by best-of-n sampling.

    For every image, the policy samples `SAMPLES` answers and `rank` picks the best; ties go to the first. The samples for
    an image depend only on the job's seed and the image.
    """
    policy, ids = job.policy, job.policy.prompt_ids(protocol.prompt)
    sampling = Sampling(protocol.max_tokens, temperature=1.0)

    def describe(some: Sequence[str]) -> list[Response]:
        prompts = [Prompt(image, str(images[image].absolute()), protocol.prompt, "describe") for image in some]
        prefix = policy.prefill(policy.image_features([images[image] for image in some]), [ids] * len(some))
        keys = [key_for(job.seed, "best of", image, number) for image in some for number in range(SAMPLES)]
        drawn = policy.generate(prefix, sampling, keys, SAMPLES)
        answers = [drawn[start : start + SAMPLES] for start in range(0, len(drawn), SAMPLES)]
        rows = zip(some, answers, rank(prompts, prefix, answers), strict=True)
        return [_response(image, protocol.prompt, of_image[_best(worth)]) for image, of_image, worth in rows]

    return describe


def with_descriptions(evaluation: Evaluation, descriptions: Sequence[Response]) -> Evaluation:
    """The evaluation, with its descriptions replaced."""
    protocol = evaluation.protocol
    others = [response for response in evaluation.responses if response.prompt != protocol.prompt]
    return Evaluation(evaluation.benchmark, protocol, [*descriptions, *others])


def as_files(benchmark: Benchmark, folder: Path) -> dict[str, Path]:
    """The benchmark's images as files, which scorers need.

    Drawn images are written to `folder`.
    """
    files = {}
    for image, picture in benchmark.pictures.items():
        if isinstance(picture, str | Path):
            files[image] = Path(picture)
            continue
        files[image] = folder / f"{image}.png"
        with replacing(files[image], durable=False) as file:
            open_image(picture).save(file, "PNG")
    return files


def _best(worth: Sequence[float]) -> int:
    return max(range(len(worth)), key=lambda number: worth[number])


def _response(image: str, prompt: str, answer: Answer) -> Response:
    return Response(f"{image}/{prompt}", image, prompt, "describe", "clean", answer.text, answer.finished, len(answer.ids))
