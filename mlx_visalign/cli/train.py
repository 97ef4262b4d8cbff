"""Train with DPO on a file of preference pairs."""

import argparse
from dataclasses import asdict

from mlx_visalign.cli.output import Result, planned
from mlx_visalign.cli.recipe_flags import as_given, data_options, recipe_values, setting, training_options
from mlx_visalign.runs.recipe import find_recipe
from mlx_visalign.runs.run import Run
from mlx_visalign.utils.arguments import require_there
from mlx_visalign.utils.config import dump, with_overrides
from mlx_visalign.utils.schema import build

EXAMPLES = (
    "--data pairs.jsonl --model MODEL --adapter-path OUT",
    "--data csr.json --images coco/train2014 --model MODEL --adapter-path OUT --iters 500 --dry-run",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    data_options(parser)
    parser.add_argument("--adapter-path", metavar="OUT", required=True, help="folder for the adapter and the training log")
    parser.add_argument("-c", "--config", metavar="RECIPE", default="dpo", help="a YAML file of training settings")
    parser.add_argument("--preset", metavar="NAME", help="which of the recipe's presets, if it has any")
    training_options(parser, "recipe.")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", type=setting, help="any training setting; --set help lists them"
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="random seed; %(default)s")


def run(options: argparse.Namespace) -> Result:
    from mlx_visalign.inference.context_length import pairs_that_fit
    from mlx_visalign.inference.policy import load
    from mlx_visalign.pipeline.pair_statistics import longest_answer, measure
    from mlx_visalign.pipeline.pair_training import read_pairs, require_own, score_reference, workload_of
    from mlx_visalign.preflight.doctor import require_same_model, require_sound
    from mlx_visalign.preflight.estimate import forecast, in_full, report_previous_kill, training_needs, warn_if_too_large
    from mlx_visalign.training.dpo import PreferenceSettings, train_on_pairs
    from mlx_visalign.training.training_length import short_training_warning

    path = find_recipe(options.config)
    settings = with_overrides(
        lambda values: build(PreferenceSettings, values, str(path)),
        path,
        options.preset,
        recipe_values(options),
        as_given(options),
    )
    run = Run(options.adapter_path, command=options.again)
    require_same_model(run.config, run.checked, options.model)
    require_there(options, "data", "images")
    placed, found = read_pairs(options.data, options.images, options.skip_bad)
    needs = training_needs(settings)
    warn_if_too_large(options.model, forecast(options.model, needs))
    policy = load(options.model)
    pairs = [one.pair for one in pairs_that_fit(policy, placed, options.skip_bad)]
    measured = measure(policy, pairs)
    longest = longest_answer(measured)
    needs |= {"prompt": measured["prompt_tokens"]["max"], "answer": longest, "images": measured["images"]}
    expected = forecast(options.model, needs, workload_of(pairs, settings, longest))
    loop = settings.loop(len(pairs))
    too_little = short_training_warning(loop, len(pairs))
    plan = {"format": found, **measured, "updates": loop.iters, **({"too_little": too_little} if too_little else {})}
    if options.dry_run:
        return planned(plan | in_full(expected), dump(asdict(settings)))
    config = {"model": options.model, "data": options.data, "seed": options.seed, "settings": asdict(settings)}
    require_own(run.folder)
    with run:
        if run.died_in is not None:
            report_previous_kill(run.died_in, expected)
        if not run.config.exists():  # an existing one stays until these settings are accepted
            run.start(config)
        require_sound(policy, run.checked)
        scored = score_reference(policy, pairs, settings, run, options.seed)
        with run.working("the training"):
            train_on_pairs(policy, scored, settings, run.folder, options.seed)
        policy.save_adapter(run.folder, method="dpo", round=1)
        run.start(config)
    return Result.from_dict(plan | {"adapter": str(run.folder)})
