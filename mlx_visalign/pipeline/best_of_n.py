"""The untrained baseline: of several sampled answers of the base, the one that the method's own judge likes best.

What a judge can tell, he can also be asked at every answer: a training pays where it does better than that, or as well
with one answer instead of eight.
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
    """What describes some of the images: each time the best of `SAMPLES` answers that the policy draws; the first of equals.

    What is drawn for an image depends on the job's seed and the image alone.
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
    """The same answers to questions, other descriptions."""
    protocol = evaluation.protocol
    others = [response for response in evaluation.responses if response.prompt != protocol.prompt]
    return Evaluation(evaluation.benchmark, protocol, [*descriptions, *others])


def as_files(benchmark: Benchmark, folder: Path) -> dict[str, Path]:
    """The benchmark's images as files, for scorers read files; those that were drawn are put into `folder`."""
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
