"""The commands that use a model, look at it or hand it on."""

import json
from argparse import Namespace
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.console import Group

from mlx_visalign.cli.output import Answers, Result, lines, plain, told
from mlx_visalign.convert.fuse import fuse
from mlx_visalign.data.images import check_image
from mlx_visalign.data.template_marks import asked
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.listed import listed_benchmark
from mlx_visalign.evaluation.runner import Protocol, evaluate
from mlx_visalign.inference.context_length import answer_length
from mlx_visalign.inference.policy import find_folder, load
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.inference.streaming import stream
from mlx_visalign.methods.job import Alignment
from mlx_visalign.models.adapter_files import fingerprint
from mlx_visalign.models.hub import find_model
from mlx_visalign.pipeline.compare import ask, compare_page, contender, images_to_compare
from mlx_visalign.pipeline.evaluations import contents, measure
from mlx_visalign.pipeline.prompts_stage import find_vocabulary
from mlx_visalign.preflight.doctor import examine, examine_adapter, stated_by, verdict
from mlx_visalign.preflight.estimate import for_people, forecast, in_full
from mlx_visalign.preflight.fused_check import compare_fused
from mlx_visalign.reporting.before_after import tally
from mlx_visalign.reporting.summary import as_rows, show_figures
from mlx_visalign.reporting.upload import preview, upload
from mlx_visalign.runs.recipe import TINY_WORLD, named_model
from mlx_visalign.runs.run import Run
from mlx_visalign.tiny_world.benchmark import world_benchmark
from mlx_visalign.utils.arguments import require_there, swallowed
from mlx_visalign.utils.errors import UserError, collect
from mlx_visalign.utils.files import write_atomically
from mlx_visalign.utils.links import named
from mlx_visalign.utils.schema import unknown

MEASURED = ("chair", "pope", "capability")  # what --benchmark may name


def generate(options: Namespace) -> Answers:
    """`visalign generate`: each image asked about alone."""
    question = asked(options.prompt)
    collect(partial(check_image, image) for image in options.image)
    policy = load(options.model, options.adapter_path)
    sampling = Sampling(answer_length(policy, question, options.max_tokens), options.temp, options.top_p)
    return Answers(options.image, lambda image: stream(policy, image, question, sampling, options.seed))


def compare(options: Namespace) -> Result:
    """`visalign compare`: two models' answers about the same images, as a web page."""
    output = named(options.output)
    if output.suffix != ".html":
        raise UserError(f"--output: a web page is written, so a name ending in .html is expected: {output}")
    swallowed(options, "images", "first", "second")
    names = (options.first, options.second)
    if None in names:
        raise UserError("Name two models or adapters to compare: visalign compare A B --images PHOTOS.")
    model = "tiny" if options.images == TINY_WORLD and options.model is None else options.model
    contenders = [contender(name, model) for name in names]
    benchmark = images_to_compare(options.images, options.count)
    sampling = Sampling(options.max_tokens, options.temp, options.top_p)
    protocol = Protocol(asked(options.prompt), options.max_tokens)
    first, second = (ask(one, benchmark, protocol, sampling, options.seed) for one in contenders)
    write_atomically(output, compare_page(first, second, names))
    return told({"images": len(benchmark.pictures), "answers": tally(first, second, names), "page": options.output})


def doctor(options: Namespace) -> Result:
    """`visalign doctor`: is the model whole, is every shortcut exact, and does it fit this machine?"""
    model = named_model(options.model, toy=options.adapter_path is None)
    folder = find_folder(model)
    policy = load(model)
    findings = [stated_by(folder), *examine(policy)]
    if options.adapter_path is not None:
        findings.append(examine_adapter(policy, find_model(options.adapter_path)))
    memory = in_full(forecast(model, {}))
    shown = [plain(f"{'ok    ' if each.ok else 'BROKEN'} {each.check:24} {each.found}") for each in findings]
    shown += [plain(f"{each.check}: {each.wrong}") for each in findings if not each.ok]
    data = {"checks": [asdict(each) for each in findings], **memory}
    whose = f"{model}: " if options.model else "The embedded toy (name your own with --model): "
    shown += [plain(""), lines(for_people(memory)), plain(""), plain(whose + verdict(findings))]
    return Result(data, Group(*shown), all(each.ok for each in findings))


def evaluate_model(options: Namespace) -> Result:
    """`visalign eval`: CHAIR, POPE and the capability check on images whose content is known."""
    wanted = options.benchmark.split(",")
    for name in wanted:
        if name not in MEASURED:
            raise UserError(f"--benchmark: {unknown(name, MEASURED)}")
    model = named_model(options.model, toy=options.annotations is None)
    require_there(options, "annotations", "images", "vocabulary")
    benchmark = _benchmark(options)
    if "chair" not in wanted:
        benchmark = replace(benchmark, annotations={})
    if "pope" not in wanted:
        benchmark = replace(benchmark, questions={})
    if "capability" not in wanted:
        benchmark = replace(benchmark, exercises=[])
    question = asked(options.prompt)
    policy = load(model, options.adapter_path)
    protocol = Protocol(question, answer_length(policy, question, options.max_tokens))
    if options.output is None:
        figures = evaluate(policy, benchmark, protocol).figures
        kept = "Nothing is kept of this. With --output FOLDER it is, and a stopped evaluation goes on."
    else:
        adapter = {} if options.adapter_path is None else {"adapter": fingerprint(find_model(options.adapter_path))}
        with Run(options.output, command=options.again) as run:
            job = Alignment(run, policy, [], seed=0)
            figures = measure(job, benchmark, "answers", {**adapter, **contents(benchmark)}, protocol).figures
            write_atomically(run.folder / "figures.json", json.dumps(as_rows(figures), indent=1))
        kept = f"Kept in {options.output}: answers.jsonl, figures.json."
    return Result(as_rows(figures), Group(show_figures(benchmark.name, figures), "", benchmark.limits, "", plain(kept)))


def _benchmark(options: Namespace) -> Benchmark:
    if options.annotations is None:
        return world_benchmark(options.split, options.count)
    file = Path(options.annotations)
    return listed_benchmark(file, options.images or file.parent, find_vocabulary(options.vocabulary))


def fuse_adapter(options: Namespace) -> Result:
    """`visalign fuse`: an adapter merged into its model."""
    model = find_folder(options.model)
    adapter, output = find_model(options.adapter_path), Path(options.mlx_path)
    figures = fuse(
        model,
        adapter,
        output,
        options.dtype,
        options.dequantize,
        options.allow_rounding,
        options.base_projector,
    )
    if not options.no_probe:
        figures["probe"] = compare_fused(model, adapter, output)
    return told(figures)


def upload_folder(options: Namespace) -> Result:
    """`visalign upload`: an adapter or a model to the Hub."""
    folder = Path(options.path)
    if not options.dry_run:
        return told(upload(folder, options.upload_repo, options.run, options.base_model, options.private))
    found = preview(folder, options.upload_repo, options.run, options.base_model)
    sizes = [f"{size:>15,}  {name}" for name, size in found["files"].items()]
    head = f"Would be uploaded to {found['repository']}, as {found['kind']}, {found['bytes']:,} bytes in {len(sizes)} files:"
    return Result(found, Group(*map(plain, (head, *sizes, "", "README.md:", "", found["card"]))))
