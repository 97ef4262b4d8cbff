"""Answer a question about images."""

import argparse
from functools import partial

from mlx_visalign.cli.output import Answers
from mlx_visalign.utils.arguments import model_options, sampling_options
from mlx_visalign.utils.errors import collect

EXAMPLES = (
    '--image photo.jpg --model MODEL --prompt "Is there a dog in the image?"',
    "--image a.jpg b.jpg --model MODEL --adapter-path runs/seva/adapter --temp 0.7 --seed 1",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model_options(parser, required=True)
    parser.add_argument("--image", nargs="+", required=True, metavar="FILE", help="images; each is answered separately")
    sampling_options(parser)


def run(options: argparse.Namespace) -> Answers:
    from mlx_visalign.data.images import check_image
    from mlx_visalign.data.template_marks import asked
    from mlx_visalign.inference.context_length import answer_length
    from mlx_visalign.inference.policy import load
    from mlx_visalign.inference.sampling import Sampling
    from mlx_visalign.inference.streaming import stream

    question = asked(options.prompt)
    collect(partial(check_image, image) for image in options.image)
    policy = load(options.model, options.adapter_path)
    sampling = Sampling(answer_length(policy, question, options.max_tokens), options.temp, options.top_p)
    return Answers(options.image, lambda image: stream(policy, image, question, sampling, options.seed))
