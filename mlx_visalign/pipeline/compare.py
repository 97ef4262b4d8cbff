"""Two models side by side.

Both get the same images, the same question and the same random keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_visalign.data.image_folder import called, find_photos
from mlx_visalign.data.images import Picture
from mlx_visalign.data.records import Response
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.runner import Evaluation, Protocol, changes, features
from mlx_visalign.inference.context_length import answer_length
from mlx_visalign.inference.policy import find_folder, load
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.models.adapter_files import CONFIG, read_config
from mlx_visalign.models.hub import find_model
from mlx_visalign.models.lora import adapter_at
from mlx_visalign.reporting.before_after import before_after_cells, legend, tally
from mlx_visalign.reporting.html import gallery, page, paragraphs, section, tag
from mlx_visalign.reporting.metrics_table import figures_table, meanings
from mlx_visalign.reporting.summary import UNITS, as_rows
from mlx_visalign.runs.worlds import find_world
from mlx_visalign.utils.console import progress
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.seeding import key_for

BATCH = 8  # images read together


@dataclass(frozen=True)
class Contender:
    """A model, with an adapter's first `rounds` rounds."""

    name: str
    model: str
    adapter: Path | None = None
    rounds: int = 0


def contender(name: str, model: str | None) -> Contender:
    """The model or adapter called `name`.

    A folder, one on the Hub, or "tiny"; a run's folder means its adapter, and ADAPTER@2 means the adapter's first two
    rounds. `model` is the adapter's base. Raises `UserError` for a round that the adapter does not have, for a name that is
    not a model, and for an adapter without a `model`.
    """
    path, _, number = name.rpartition("@") if name.rpartition("@")[2].isdecimal() else (name, "", "")
    folder = find_model(path)
    found = [place for place in (folder, folder / "adapter") if (place / CONFIG).is_file()]
    if not found:
        read_json(find_folder(name) / "config.json")  # fails here, before the other model has answered
        return Contender(name, name)
    rounds = len(read_config(found[0])[2])
    if number and int(number) > rounds:
        raise UserError(
            f"{name}: this adapter has {counted(rounds, 'round')}. Name a round from 0 (the model without it) to {rounds}."
        )
    if model is None:
        raise UserError(f"{name} is an adapter. Name its base model with --model MODEL.")
    return Contender(name, model, found[0], int(number or rounds))


def images_to_compare(images: str | Sequence[str], count: int) -> Benchmark:
    """The first `count` images of folders, files or a world.

    A world's are validation images, with their labels.
    """
    world = find_world(images)
    if world is not None:
        return replace(world.benchmark("validation", count), questions={}, exercises=[])
    pictures: dict[str, Picture] = {photo.image: Path(photo.image) for photo in find_photos(images, count, skip_bad=True)}
    return Benchmark(f"{len(pictures)} images in {called(images)}", pictures)


def ask(one: Contender, benchmark: Benchmark, protocol: Protocol, sampling: Sampling, seed: int) -> Evaluation:
    """The model's answers.

    An answer's random key depends only on the seed and the image.
    """
    policy, images = load(one.model, one.adapter), list(benchmark.pictures)
    ids = policy.prompt_ids(protocol.prompt)
    sampling = replace(sampling, max_tokens=answer_length(policy, protocol.prompt, sampling.max_tokens))
    responses: list[Response] = []
    with progress(one.name, len(images), unit="image") as bar, adapter_at(policy.model, one.rounds):
        for start in range(0, len(images), BATCH):
            some = images[start : start + BATCH]
            prefix = policy.prefill(features(policy, [benchmark.pictures[image] for image in some]), [ids] * len(some))
            answers = policy.generate(prefix, sampling, [key_for(seed, "compare", image) for image in some])
            responses += [
                Response(image, image, protocol.prompt, "describe", "clean", answer.text, answer.finished, len(answer.ids))
                for image, answer in zip(some, answers, strict=True)
            ]
            bar.advance(len(some))
    return Evaluation(benchmark, protocol, responses)


def compare_page(first: Evaluation, second: Evaluation, names: tuple[str, str]) -> str:
    """The web page: figures, and every image with both answers.

    Figures need labels.
    """
    benchmark = first.benchmark
    title = f"{names[0]} and {names[1]}"
    figures = {"before": as_rows(first.figures), "after": as_rows(second.figures), "change": as_rows(changes(first, second))}
    return page(
        title,
        tag("h1", title),
        tag("p", f"Both were asked about {benchmark.name}: {first.protocol.prompt}", cls="lead"),
        tag("p", benchmark.limits, cls="note"),
        section("Figures", figures_table(figures, names), meanings(first.counts), paragraphs([UNITS], "soft")),
        section(
            "Answers",
            tag("p", tally(first, second, names)),
            gallery(before_after_cells(first, second, names, len(benchmark.pictures)), legend(benchmark)),
        ),
    )
