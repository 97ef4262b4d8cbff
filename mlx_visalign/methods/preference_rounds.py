"""Rounds of a pair method: sample, make pairs, train, repeat.

A pair method is a module with

    Settings                                 its settings, a frozen dataclass that extends `PairSettings`
    sample(job, settings, prompts, number)   records of the model's answers to some prompts, in round `number`
    pairs(rows, settings, seed)              the pairs that all records of a round make

and these optional parts:

    ROWS                           the name and the type of its records; default ("responses", Response)
    scored(settings)               whether `sample` also computes the reference's log-probabilities, so that pairs have them
    PAIR_SETTINGS                  the names of the settings that `pairs` reads and `sample` does not
    ADVICE                         how to get more pairs, for the warning that there are few
    resolve(job, settings)         the settings, with what the run itself must find out first
    prepare(job, settings)         the job with what sampling needs, such as a loaded scorer
    depends_on(job, settings)      what its records depend on besides its settings, the seed and the model
    summary(rows, pairs)           a sentence on how many pairs a round made, and why not more
    remarks(job, rows, pairs)      further sentences about a round's pairs, warnings among them
    round_figures(rows, pairs)     a round's numbers in rounds.json, besides pairs, rewards and time
    ranking, picture               as for every method (methods/__init__.py)

Where the settings are `RoundSettings`, each round trains in a folder of its own, round-1, round-2 ..., as a slice of one
adapter. The reference of a round is the model that made its pairs.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from mlx_visalign.data.records import Pair, Prompt, Record, Response, read_jsonl
from mlx_visalign.data.training_log import METRICS, read_metrics, seconds
from mlx_visalign.methods.job import SCORED_TOGETHER, Job
from mlx_visalign.models.adapter_files import fingerprint
from mlx_visalign.preflight.workload import Answering, Workload, reference_scoring
from mlx_visalign.runs.run_folder import stage_name
from mlx_visalign.training.dpo import PreferenceSettings, train_on_pairs
from mlx_visalign.training.pair_filters import warn_if_few
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import write_atomically
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.schema import require
from mlx_visalign.utils.seeding import number_for

TRAINING = ("train", "rounds", "later_epochs", "batch")  # settings that do not change a round's answers
HELD_OUT_LOSS = PreferenceSettings().loss  # held-out pairs are always compared by DPO's rewards


@dataclass(frozen=True)
class PairSettings:
    """Settings that pair methods share.

    The workload given here is that of a greedy and a sampled answer to every prompt.

    max_tokens    longest answer, end token included
    batch         prompts answered together
    train         training on the pairs
    """

    max_tokens: int = 256
    batch: int = 8
    train: PreferenceSettings = field(default_factory=PreferenceSettings)

    def __post_init__(self) -> None:
        require(self, max_tokens=(self.max_tokens >= 1, "1 or more"), batch=(self.batch >= 1, "1 or more"))

    def prompts_used(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts that pairs are made from."""
        return list(prompts)

    def workload(self, prompts: Sequence[Prompt]) -> Workload:
        """Sampling, scoring both answers for the reference, and training."""
        count = len(self.prompts_used(prompts))
        sampled = count * 2 * self.max_tokens
        answering = Answering("answering", count, sampled, self.batch, self.max_tokens, drawn=True)
        scoring = reference_scoring(self.train.loss, count, SCORED_TOGETHER, self.max_tokens)
        return Workload((answering, scoring), self.train.prompts_trained(count))


@dataclass(frozen=True)
class RoundSettings:
    """Settings of methods that repeat sampling and training.

    rounds        rounds of sampling and training, each with the model of the last; may be raised later to continue
    later_epochs  passes over the pairs in every round after the first, above 0; as many as `train.iters` where that is given.
                  Rounds as long as the first make answers shorter, and repeat what they name
    """

    rounds: int = 1
    later_epochs: float = 1.0
    train: PreferenceSettings = field(default_factory=PreferenceSettings)

    def __post_init__(self) -> None:
        require(self, rounds=(self.rounds >= 1, "1 or more"), later_epochs=(self.later_epochs > 0, "above 0"))

    def train_of(self, number: int) -> PreferenceSettings:
        """The training of a round, counted from 1."""
        return self.train if number == 1 else replace(self.train, epochs=self.later_epochs)

    def prompts_trained(self, count: int) -> int:
        """Training passes of single prompts, over all rounds.

        With `count` pairs in each.
        """
        return sum(self.train_of(number).prompts_trained(count) for number in range(1, self.rounds + 1))


@dataclass(frozen=True)
class PairMethod:
    """A pair method's parts, with defaults for the optional ones."""

    name: str
    sample: Callable[[Job, Any, Sequence[Prompt], int], Sequence[Record]]
    pairs: Callable[[Sequence[Any], Any, int], list[Pair]]
    rows: tuple[str, type[Record]]
    scored: Callable[[Any], bool]
    pair_settings: Sequence[str]
    advice: str
    resolve: Callable[[Job, Any], Any]
    prepare: Callable[[Job, Any], Job]
    depends_on: Callable[[Job, Any], dict[str, Any]]
    summary: Callable[[Sequence[Any], Sequence[Pair]], str]
    remarks: Callable[[Job, Sequence[Any], Sequence[Pair]], Sequence[str]]
    round_figures: Callable[[Sequence[Any], Sequence[Pair]], dict[str, Any]]

    @classmethod
    def of(cls, name: str, module: ModuleType) -> "PairMethod":
        """The parts that a module has.

        Raises `UserError` for rounds that nothing would train.
        """
        if hasattr(module.Settings, "rounds") and not issubclass(module.Settings, RoundSettings):
            raise UserError(f"The method {name} has rounds, so its Settings must extend preference_rounds.RoundSettings.")
        return cls(
            name,
            module.sample,
            module.pairs,
            getattr(module, "ROWS", ("responses", Response)),
            getattr(module, "scored", lambda settings: False),
            getattr(module, "PAIR_SETTINGS", ()),
            getattr(module, "ADVICE", "More images, or longer answers (--max-tokens), leave more."),
            getattr(module, "resolve", lambda job, settings: settings),
            getattr(module, "prepare", lambda job, settings: job),
            getattr(module, "depends_on", lambda job, settings: {}),
            getattr(module, "summary", lambda rows, pairs: f"{counted(len(pairs), 'pair')} made."),
            getattr(module, "remarks", lambda job, rows, pairs: ()),
            getattr(module, "round_figures", lambda rows, pairs: {}),
        )


@dataclass(frozen=True)
class Round:
    """One round's training: number from 1, folder and seed."""

    number: int
    folder: Path
    seed: int


def train(method: PairMethod, job: Job, settings: Any) -> None:
    """Run a pair method: sample, pair, train in each round.

    Every step is a stage of the run, done once. Pairs about held-out images are made by the untrained model, before the
    first training.
    """
    settings = method.resolve(job, settings)
    job = method.prepare(job, settings)
    require_readable(method, job, settings)

    def pairs_of(one: Round) -> list[Pair]:
        pairs = collect(method, job, settings, job.prompts, one)
        warn_if_few(pairs, settings.prompts_used(job.prompts), method.advice)
        if one.number == 1 and job.held_out:
            collect(method, job, settings, job.held_out, one, held_out=True)
        return pairs

    train_in_rounds(job, settings, pairs_of, method.name)
    if isinstance(settings, RoundSettings):
        figures = [_figures(method, job, one) for one in rounds_of(job, settings)]
        write_atomically(job.run.rounds, json.dumps(figures, indent=1))


def rounds_of(job: Job, settings: Any) -> list[Round]:
    """The rounds to train.

    One, in the run's own folder, or `settings.rounds`, each in a folder of its own.
    """
    if not isinstance(settings, RoundSettings):
        return [Round(1, job.run.folder, job.seed)]
    numbers = range(1, settings.rounds + 1)
    return [Round(number, job.run.round(number), number_for(job.seed, "round", number)) for number in numbers]


def train_in_rounds(job: Job, settings: Any, pairs_of: Callable[[Round], list[Pair]], name: str) -> None:
    """Train every round on its pairs.

    `pairs_of(round)` is called right before that round, with the model as the rounds before have left it.
    """
    for one in rounds_of(job, settings):
        pairs = pairs_of(one)
        training = settings.train_of(one.number) if isinstance(settings, RoundSettings) else settings.train
        guard = job.length_guard(settings, training.loop(len(pairs)).iters)
        train_on_pairs(job.policy, pairs, training, one.folder, one.seed, job.on_metrics, guard)
        if one.folder != job.run.folder:
            job.policy.save_adapter(one.folder / "adapter", method=name, round=one.number)
            job.run.join_metrics(one.number)
        job.policy.save_adapter(job.run.adapter, method=name, round=one.number)
        if one.folder != job.run.folder and job.after_round is not None:
            job.after_round()


def collect(
    method: PairMethod, job: Job, settings: Any, prompts: Sequence[Prompt], one: Round, held_out: bool = False
) -> list[Pair]:
    """A round's pairs, image paths resolved, with reference log-probabilities.

    One stage for the samples, one for the pairs.
    """
    in_rounds = isinstance(settings, RoundSettings)
    aside = (f", round {one.number}" if in_rounds else "") + (", held-out images" if held_out else "")
    sampling = {name: value for name, value in asdict(settings).items() if name not in TRAINING}
    pairing = {name: sampling.pop(name) for name in method.pair_settings}
    about: dict[str, Any] = {"adapter": _adapter_before(job, one)} if in_rounds else {}
    depends = job.about() | {"seed": job.seed} | sampling | method.depends_on(job, settings) | about
    what, kind = method.rows
    rows = job.run.records(
        kind,
        stage_name(what, one.number, held_out),
        settings.prompts_used(prompts),
        lambda some: [row.to_row() for row in method.sample(job, settings, some, one.number)],
        settings=depends,
        batch=settings.batch,
        title=f"answering{aside}",
    )

    def make(all_rows: Sequence[Any]) -> list[Pair]:
        made = method.pairs(all_rows, settings, job.seed)
        return [replace(pair, method=method.name, round=one.number, seed=job.seed) for pair in made]

    stage = stage_name("pairs", one.number, held_out)
    loss = HELD_OUT_LOSS if held_out else settings.train.loss
    if method.scored(settings) and not loss.needs_more:
        pairs = job.run.records(
            Pair,
            stage,
            rows,
            lambda all_rows: [pair.to_row() for pair in make(all_rows)],
            settings=depends | pairing,
            batch=max(1, len(rows)),
            title=f"pairing{aside}",
        )
    else:
        pairs = job.scored(make(rows), stage, loss, one.seed, **about)
    say(("Held-out images: " if held_out else "") + method.summary(rows, pairs))
    if not held_out:
        for remark in method.remarks(job, rows, pairs):
            say(remark)
    return [job.located(pair) for pair in pairs]


def _adapter_before(job: Job, one: Round) -> str | None:
    """The fingerprint of the adapter that a round starts from."""
    return fingerprint(job.run.round(one.number - 1) / "adapter") if one.number > 1 else None


def require_readable(method: PairMethod, job: Job, settings: Any) -> None:
    """Raise `UserError` for a damaged row of any finished round.

    Checked before the first round trains: later, the adapters of earlier rounds would have been rewritten already.
    """
    what, kind = method.rows
    for one in rounds_of(job, settings):
        for name, records in ((what, kind), ("pairs", Pair)):
            file = job.run.rows(stage_name(name, one.number))
            if file.exists():
                read_jsonl(file, records)


def _figures(method: PairMethod, job: Job, one: Round) -> dict[str, Any]:
    """A round's row of rounds.json: training time, and means over its pairs."""
    what, kind = method.rows
    rows = read_jsonl(job.run.rows(stage_name(what, one.number)), kind)
    pairs = read_jsonl(job.run.rows(stage_name("pairs", one.number)), Pair)
    scores = {
        side: [score for pair in pairs if (score := getattr(pair, f"{side}_score")) is not None]
        for side in ("chosen", "rejected")
    }
    return {
        "round": one.number,
        "pairs": len(pairs),
        "training_seconds": seconds(read_metrics(one.folder / METRICS)),
        "reward": {side: fmean(some) for side, some in scores.items() if some},
        **method.round_figures(rows, pairs),
    }
