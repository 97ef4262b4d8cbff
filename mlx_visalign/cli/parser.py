"""The command line's parser, and the table of commands.

A command is a module beside this one. The first line of its docstring is its help, EXAMPLES are shown below its options,
`add_arguments(parser)` declares them, and `run(options)` runs it. Slow imports belong into `run`, so that `--help` is fast.
"""

import argparse
from types import ModuleType

from mlx_visalign.cli import check, compare, demo, doctor, fuse, generate, judge, methods, recipes, run, train, upload, world
from mlx_visalign.cli import eval as evaluate
from mlx_visalign.convert import cli as converters
from mlx_visalign.utils.arguments import command
from mlx_visalign.utils.flags import Parser

EXAMPLES = """
  visalign demo                                       a small LLaVA learns to see better, in minutes
  visalign run seva --model MODEL --images PHOTOS     align a model on a folder of unlabelled images
  visalign convert llava --hf-path HF --mlx-path M    a Hugging Face LLaVA as a folder that MLX loads
  visalign generate --model MODEL --adapter-path runs/seva/adapter --image cat.jpg --prompt "What is this?"
  visalign COMMAND --help                             a command's options, with examples
"""


TO_BEGIN_WITH = """
To begin with:
  visalign demo                                       see it work on the built-in tiny LLaVA
  visalign doctor --model MODEL                       check your model, and whether it fits this machine
  visalign run seva --model MODEL --images PHOTOS     align it on a folder of your photos
"""


COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "run": run,
    "train": train,
    "check": check,
    "generate": generate,
    "compare": compare,
    "eval": evaluate,
    "doctor": doctor,
    "judge": judge,
    "world": world,
    "convert": converters,  # listed only: `main` passes its arguments on to `convert.cli`
    "fuse": fuse,
    "upload": upload,
    "methods": methods,
    "recipes": recipes,
}


def build_parser(version: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog="visalign",
        description="Self-alignment for LLaVA models: from unlabelled images to an adapter that hallucinates less.",
        epilog=f"examples:{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"visalign {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        if module is converters:
            commands.add_parser(name, help="convert models and adapters to MLX and back", add_help=False)
            continue
        about = str(module.__doc__).partition("\n")[0]
        examples = [f"visalign {name} {example}".rstrip() for example in module.EXAMPLES]
        module.add_arguments(command(commands, name, f"{about[0].lower()}{about[1:]}".rstrip("."), *examples))
    return parser
