"""What each command does: it takes the parsed options and returns what is to be printed."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console, Group, RenderableType
from rich.text import Text

from mlx_visalign.alignment import Alignment
from mlx_visalign.asking import find_vocabulary
from mlx_visalign.before_after import tally
from mlx_visalign.compare import ask, compare_page, contender, images_to_compare
from mlx_visalign.config import dump, load_recipe
from mlx_visalign.convert.fuse import fuse
from mlx_visalign.convert.hub import find_model
from mlx_visalign.doctor import examine, examine_adapter, require_sound, stated_by
from mlx_visalign.errors import UserError
from mlx_visalign.evals.benchmark import Benchmark, world_benchmark
from mlx_visalign.evals.listed import listed_benchmark
from mlx_visalign.evaluate import Protocol, evaluate
from mlx_visalign.fields import build, unknown
from mlx_visalign.files import write_atomically
from mlx_visalign.foresight import foresee
from mlx_visalign.generate import Sampling
from mlx_visalign.memory_plan import find_folder, forecast, in_full, tell_of_death, training_needs, warn_if_too_large
from mlx_visalign.options import recipe_values
from mlx_visalign.pair_formats import read_pairs
from mlx_visalign.photos import content_id
from mlx_visalign.pipeline import run_recipe
from mlx_visalign.policy import TINY, load
from mlx_visalign.preference import PreferenceSettings, train_on_pairs, with_reference
from mlx_visalign.preview import longest_answer, measure, show_pair
from mlx_visalign.probe import compare_fused
from mlx_visalign.progress import CODES
from mlx_visalign.recipe import find_recipe, make_plan
from mlx_visalign.records import Pair
from mlx_visalign.report import show, show_figures
from mlx_visalign.run import Run
from mlx_visalign.sheet import Caption, Cell, Span, contact_sheet, save_sheet
from mlx_visalign.stage import fingerprint
from mlx_visalign.stream import stream
from mlx_visalign.upload import upload
from mlx_visalign.weights import WEIGHTS
from mlx_visalign.workload import Answering, Workload
from mlx_visalign.world import language, scenes
from mlx_visalign.world.drawing import draw
from mlx_visalign.world.pretrain import train_world

REFERENCE_BATCH = 8  # pairs scored together
MEASURED = ("chair", "pope", "capability")  # what --benchmark may name


@dataclass(frozen=True)
class Result:
    """What came out, for programs and for people."""

    data: Any
    shown: RenderableType
    well: bool = True  # or else the exit code is 2

    def show(self) -> None:
        Console(highlight=False, markup=False).print(self.shown, crop=False)


@dataclass(frozen=True)
class Answers:
    """A result that is shown while it is made: an answer to each image."""

    images: Sequence[str]
    pieces: Callable[[str], Iterator[str]]
    well = True

    @property
    def data(self) -> list[dict[str, str]]:
        return [{"image": image, "answer": "".join(self.pieces(image))} for image in self.images]

    def show(self) -> None:
        for image in self.images:
            print(f"{image}: ".translate(CODES) if len(self.images) > 1 else "", end="")
            for piece in self.pieces(image):
                print(piece.translate(CODES), end="", flush=True)
            print()


def align(options: Namespace) -> Result:
    """`visalign run` and `visalign demo`."""
    name = options.config or options.method
    if name is None:
        raise UserError("Name a method (visalign run seva ...) or a recipe (visalign run -c recipe.yaml ...).")
    values = recipe_values(options) | {"method": options.method}
    plan = make_plan(find_recipe(name), options.find_method, options.preset, values)
    if options.dry_run:
        return _told(foresee(plan), dump(plan.config))
    run = Run(options.output or f"runs/{Path(name).stem}", reuse=options.reuse, command=options.again)
    score = options.find_scorer(plan.recipe.scorer) if plan.recipe.scorer else None
    report = run_recipe(plan, run, score=score)
    files = {"report": "report.html", "figures": "report.json"}
    places = {"adapter": str(run.adapter), **{name: str(run.folder / file) for name, file in files.items()}}
    return Result(report | places, Group(show(report), _lines(places)))


def train(options: Namespace) -> Result:
    """`visalign train`: DPO on anyone's pairs, the reference scored once before."""
    values = load_recipe(find_recipe(options.config), options.preset, recipe_values(options))
    settings = build(PreferenceSettings, values, options.config)
    pairs, found = read_pairs(Path(options.data), _path(options.images), options.skip_bad)
    needs = training_needs(settings)
    warn_if_too_large(options.model, forecast(options.model, needs))
    policy = load(options.model)
    measured = measure(policy, pairs)
    longest = longest_answer(measured)
    needs |= {"prompt": measured["prompt_tokens"]["max"], "answer": longest, "images": measured["images"]}
    expected = forecast(options.model, needs, _scoring(pairs, settings, longest))
    plan = {"format": found, **measured, "updates": settings.loop(len(pairs)).iters}
    if options.dry_run:
        return _told(plan | in_full(expected), dump(asdict(settings)))
    config = {"model": options.model, "data": options.data, "seed": options.seed, "settings": asdict(settings)}
    _not_somebody_elses(Path(options.adapter_path))
    with Run(options.adapter_path, command=options.again) as run:
        if run.died_in is not None:
            tell_of_death(run.died_in, expected)
        if not run.config.exists():  # other settings may yet be refused
            run.start(config)
        require_sound(policy, run.checked)
        scored = run.records(
            Pair,
            "pairs",
            pairs,
            lambda some: [pair.to_row() for pair in with_reference(policy, some)],
            settings=Alignment(run, policy, [], options.seed).about() | {"image_contents": _contents(pairs)},
            batch=REFERENCE_BATCH,
            title="scoring the reference",
        )
        with run.working("the training"):
            train_on_pairs(policy, scored, settings, run.folder, options.seed)
        policy.save_adapter(run.folder, method="dpo", round=1)
        run.start(config)
    return _told(plan | {"adapter": str(run.folder)})


def _scoring(pairs: Sequence[Pair], settings: PreferenceSettings, longest: int) -> Workload:
    """What a training on pairs does: both answers are read once for the reference, and then trained on."""
    stage = Answering("scoring the reference", len(pairs), 0, REFERENCE_BATCH, longest, read=2)
    return Workload((stage,), settings.prompts_trained(len(pairs)))


def _contents(pairs: Sequence[Pair]) -> str:
    """Tells the pairs' images, as they are now, from what any of them was before it changed."""
    images = dict.fromkeys(image for pair in pairs for image in pair.images)
    return fingerprint([content_id(Path(image)) for image in images])


def _not_somebody_elses(folder: Path) -> None:
    """`train` writes its adapter where other commands read one: it must not write over an adapter it did not make."""
    if (folder / WEIGHTS).exists() and not (folder / "pairs.jsonl").exists():
        raise UserError(f"{folder} holds an adapter that `visalign train` did not make. Name another --adapter-path.")


def check(options: Namespace) -> Result:
    """`visalign check`: a pairs file as it will be trained."""
    pairs, found = read_pairs(Path(options.data), _path(options.images), options.skip_bad)
    policy = load(options.model)
    figures = {"format": found, **measure(policy, pairs)}
    first = show_pair(policy, pairs[0])
    return Result(figures | {"first_pair": first.plain}, Group(_lines(figures), "", "The first pair:", first))


def generate(options: Namespace) -> Answers:
    """`visalign generate`: each image asked about alone."""
    policy = load(options.model, options.adapter_path)
    sampling = Sampling(options.max_tokens, options.temp, options.top_p)
    return Answers(options.image, lambda image: stream(policy, image, options.prompt, sampling, options.seed))


def compare(options: Namespace) -> Result:
    """`visalign compare`: two models' answers about the same images, as a web page."""
    output = Path(options.output)
    if output.suffix != ".html":
        raise UserError(f"--output: a web page is written, so a name ending in .html is expected: {output}")
    names = (options.first, options.second)
    contenders = [contender(name, options.model) for name in names]
    benchmark = images_to_compare(options.images, options.count)
    sampling = Sampling(options.max_tokens, options.temp, options.top_p)
    protocol = Protocol(options.prompt, options.max_tokens)
    first, second = (ask(one, benchmark, protocol, sampling, options.seed) for one in contenders)
    write_atomically(output, compare_page(first, second, names))
    return _told({"images": len(benchmark.pictures), "answers": tally(first, second, names), "page": str(output)})


def doctor(options: Namespace) -> Result:
    """`visalign doctor`: is the model whole, is every shortcut exact, and does it fit this machine?"""
    folder = find_folder(options.model)
    policy = load(options.model)
    findings = [stated_by(folder), *examine(policy)]
    if options.adapter_path is not None:
        findings.append(examine_adapter(policy, find_model(options.adapter_path)))
    memory = in_full(forecast(options.model, {}))
    shown = [_plain(f"{'ok    ' if each.ok else 'BROKEN'} {each.check:24} {each.found}") for each in findings]
    shown += [_plain(f"{each.check}: {each.wrong}") for each in findings if not each.ok]
    data = {"checks": [asdict(each) for each in findings], **memory}
    return Result(data, Group(*shown, "", _lines(memory)), all(each.ok for each in findings))


def evaluate_model(options: Namespace) -> Result:
    """`visalign eval`: CHAIR, POPE and the capability check on images whose content is known."""
    wanted = options.benchmark.split(",")
    for name in wanted:
        if name not in MEASURED:
            raise UserError(f"--benchmark: {unknown(name, MEASURED)}")
    benchmark = _benchmark(options)
    if "chair" not in wanted:
        benchmark = replace(benchmark, annotations={})
    if "pope" not in wanted:
        benchmark = replace(benchmark, questions={})
    if "capability" not in wanted:
        benchmark = replace(benchmark, exercises=[])
    protocol = Protocol(options.prompt, options.max_tokens)
    figures = evaluate(load(options.model, options.adapter_path), benchmark, protocol).figures
    data = {group: {name: asdict(figure) for name, figure in named.items()} for group, named in figures.items()}
    return Result(data, Group(show_figures(benchmark.name, figures), "", benchmark.limits))


def _benchmark(options: Namespace) -> Benchmark:
    if options.annotations is None:
        return world_benchmark(options.split, options.count)
    file = Path(options.annotations)
    return listed_benchmark(file, _path(options.images) or file.parent, find_vocabulary(options.vocabulary))


def world(options: Namespace) -> Result:
    """`visalign world draw` and `visalign world train`."""
    if options.action == "train":
        train_world(Path(options.output), options.seed)
        return _told({"folder": options.output})
    if not options.output.endswith(".png"):
        raise UserError(f"--output: the scenes are drawn to a PNG file, so a name ending in .png is expected: {options.output}")
    cells = [_cell(scene) for scene in scenes.split(options.split, options.count)]
    save_sheet(contact_sheet(cells, 4, f"The tiny world: {options.split} scenes", []), Path(options.output))
    return _told({"sheet": options.output})


def fuse_adapter(options: Namespace) -> Result:
    """`visalign fuse`: an adapter merged into its model."""
    model = TINY if options.model == "tiny" else find_model(options.model)
    adapter, output = find_model(options.adapter_path), Path(options.mlx_path)
    figures = fuse(model, adapter, output, options.dtype, options.dequantize)
    if not options.no_probe:
        figures["probe"] = compare_fused(model, adapter, output)
    return _told(figures)


def upload_folder(options: Namespace) -> Result:
    """`visalign upload`: an adapter or a model to the Hub."""
    return _told(upload(Path(options.path), options.upload_repo, _path(options.run), options.base_model, options.private))


COMMANDS: dict[str, Callable[[Namespace], Result | Answers]] = {
    "demo": align,
    "run": align,
    "train": train,
    "check": check,
    "compare": compare,
    "generate": generate,
    "eval": evaluate_model,
    "doctor": doctor,
    "world": world,
    "fuse": fuse_adapter,
    "upload": upload_folder,
}


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _told(figures: dict[str, Any], *more: str) -> Result:
    return Result(figures, Group(_lines(figures), *map(_plain, more)))


def _lines(figures: dict[str, Any]) -> Text:
    return _plain("\n".join(f"{name.replace('_', ' '):18} {_words(value)}" for name, value in figures.items()))


def _plain(text: str) -> Text:
    """Text as it is, whatever the terminal's width: paths and commands can be copied."""
    return Text(text.translate(CODES), no_wrap=True, overflow="ignore")


def _words(value: Any) -> str:
    return ", ".join(f"{name} {number:g}" for name, number in value.items()) if isinstance(value, dict) else str(value)


def _cell(scene: scenes.Scene) -> Cell:
    return Cell(Image.fromarray(draw(scene)), (Caption(f"{scene.seed}", (Span(language.caption(scene.things)),)),))
