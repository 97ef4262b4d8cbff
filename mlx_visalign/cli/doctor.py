"""Check a model's masks, cache, template, images, adapter and memory.

The exit code is 2 if a check fails.
"""

import argparse
from dataclasses import asdict

from mlx_visalign.cli.output import Result, lines, plain
from mlx_visalign.runs.recipe import named_model
from mlx_visalign.utils.arguments import model_options

EXAMPLES = (
    "--model MODEL",
    "--model MODEL --adapter-path runs/seva/adapter --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model_options(parser)


def run(options: argparse.Namespace) -> Result:
    from rich.console import Group

    from mlx_visalign.inference.policy import find_folder, load
    from mlx_visalign.models.hub import find_model
    from mlx_visalign.preflight.doctor import examine, examine_adapter, stated_by, summarize
    from mlx_visalign.preflight.estimate import for_people, forecast, in_full

    model = named_model(options.model, default="tiny" if options.adapter_path is None else None)
    folder = find_folder(model)
    policy = load(model)
    findings = [stated_by(folder), *examine(policy)]
    if options.adapter_path is not None:
        findings.append(examine_adapter(policy, find_model(options.adapter_path)))
    memory = in_full(forecast(model, {}))
    shown = [plain(f"{'ok    ' if each.ok else 'BROKEN'} {each.check:24} {each.found}") for each in findings]
    shown += [plain(f"{each.check}: {each.wrong}") for each in findings if not each.ok]
    data = {"checks": [asdict(each) for each in findings], **memory}
    whose = f"{model}: " if options.model else "The built-in toy model (name your own with --model): "
    shown += [plain(""), lines(for_people(memory)), plain(""), plain(whose + summarize(findings))]
    return Result(data, Group(*shown), all(each.ok for each in findings))
