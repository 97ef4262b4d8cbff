"""Write a web page that compares two models' answers."""

import argparse

from mlx_visalign.cli.output import Result
from mlx_visalign.utils.arguments import Images, link_option, positive, sampling_options, swallowed
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import write_atomically
from mlx_visalign.utils.links import named

EXAMPLES = (
    "tiny runs/demo/adapter --images tiny-world",
    "MODEL runs/seva/adapter --model MODEL --images PHOTOS",
    "runs/csr/adapter@1 runs/csr/adapter@2 --model MODEL --images PHOTOS --output rounds.html",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", nargs="?", help="a model, an adapter, or ADAPTER@2 (its first two rounds)")
    parser.add_argument("second", metavar="B", nargs="?", help="the model or adapter to compare with A")
    parser.add_argument("--model", help="base model of the adapters; default with --images tiny-world: tiny")
    parser.add_argument("--images", required=True, action=Images, help='images, or "tiny-world": scenes with known content')
    parser.add_argument("--count", type=positive, metavar="N", default=24, help="maximum number of images; %(default)s")
    parser.add_argument("--output", metavar="FILE.html", default="compare.html", help="%(default)s")
    link_option(parser)
    sampling_options(parser)


def run(options: argparse.Namespace) -> Result:
    from mlx_visalign.data.template_marks import asked
    from mlx_visalign.evaluation.runner import Protocol
    from mlx_visalign.inference.sampling import Sampling
    from mlx_visalign.pipeline.compare import ask, compare_page, contender, images_to_compare
    from mlx_visalign.reporting.before_after import tally
    from mlx_visalign.runs.worlds import find_world

    output = named(options.output)
    if output.suffix != ".html":
        raise UserError(f"--output: expected a file name that ends in .html, got {output}.")
    swallowed(options, "images", "first", "second")
    names = (options.first, options.second)
    if None in names:
        raise UserError("Name two models or adapters to compare: visalign compare A B --images PHOTOS.")
    world = find_world(options.images)
    model = world.model if world is not None and options.model is None else options.model
    contenders = [contender(name, model) for name in names]
    benchmark = images_to_compare(options.images, options.count)
    sampling = Sampling(options.max_tokens, options.temp, options.top_p)
    protocol = Protocol(asked(options.prompt), options.max_tokens)
    first, second = (ask(one, benchmark, protocol, sampling, options.seed) for one in contenders)
    write_atomically(output, compare_page(first, second, names))
    return Result.from_dict({"images": len(benchmark.pictures), "answers": tally(first, second, names), "page": options.output})
