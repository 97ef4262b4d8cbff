"""report.html: the page of a run, updated while it runs.

A method may write `plots/METHOD.html`, a fragment built with `reporting.html`, or `plots/METHOD.png`. The page includes the
fragment, or without one the picture.
"""

import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_visalign.data.image_folder import called
from mlx_visalign.data.training_log import read_metrics, warning_signs
from mlx_visalign.evaluation.runner import Evaluation
from mlx_visalign.reporting.before_after import before_after_cells, legend, tally, which
from mlx_visalign.reporting.html import Html, commands, facts, gallery, page, paragraphs, png, section, tag
from mlx_visalign.reporting.judge_report import JudgeReport, judge_section, read_judge
from mlx_visalign.reporting.metrics_table import figures_table, meanings, one_evaluation, rounds_table, tiles
from mlx_visalign.reporting.summary import in_short, notes
from mlx_visalign.reporting.svg_plots import curves
from mlx_visalign.runs.image_sources import ImageSource
from mlx_visalign.runs.run import Run, read_versions
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_text, write_atomically
from mlx_visalign.utils.formatting import counted, duration

SECONDS = 20  # the maximum age of a running run's page, and how often the browser reloads it


@dataclass
class ReportPage:
    """The page of one run.

    The pipeline sets the fields below as results become available.

    config   the recipe, as in config.yaml
    about    the method's description: "SeVa: ..."
    source   where its images come from
    report   the content of report.json, once the run is finished
    stopped  why the run stopped, if it did
    """

    run: Run
    config: Mapping[str, Any]
    about: str
    source: ImageSource
    before: Evaluation | None = None
    after: Evaluation | None = None
    report: Mapping[str, Any] | None = None
    stopped: str = ""
    _judge: JudgeReport | None = None
    _written: float = -SECONDS

    def refresh(self) -> None:
        """Write the page, at most every 20 seconds."""
        if time.monotonic() - self._written >= SECONDS:
            self.write()

    def write(self) -> None:
        write_atomically(self.run.page, self.html())
        self._written = time.monotonic()

    def html(self) -> str:
        title = f"{self._method_name} on {Path(self.config['model']).name}"
        sections = (
            *(self._figures, self._rounds, self._images, self._training),
            *(self._judged, self._picture, self._adapter, self._what_ran),
        )
        shown = [part for make in sections for part in make()]
        about = tag("p", self.about, cls="lead")
        head = (tag("h1", title), *self._too_short(), about, self._lead(), *self._outcome())
        return page(title, *head, *shown, reload_after=None if self.report or self.stopped else SECONDS)

    @property
    def _method_name(self) -> str:
        return self.about.partition(":")[0]

    def _too_short(self) -> Iterator[Html]:
        """A warning, above everything else, if the training was too short to change anything."""
        if self.report is not None and self.report.get("too_little"):
            yield tag("p", self.report["too_little"], cls="warning")

    def _lead(self) -> Html:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        if self.stopped:
            return tag("p", f"This run stopped at {now}. {self.stopped}", cls="warning")
        if self.report is None:
            done = ", ".join([*(name for name, _ in self._stages()), *self._updates()]) or "nothing"
            status = (
                f"This run is not finished. Done at {now}: {done}. The page reloads itself. If this time does not change for "
                "long, the run has stopped; rerun the same command to resume it."
            )
            return tag("p", status, cls="note")
        training = self.report["training"]
        cost = f"{counted(training['updates'], 'update')} in {duration(training['seconds'])}"
        return tag("p", f"{self._about_images()} Training: {cost}{_memory(training)}.", cls="lead")

    def _updates(self) -> list[str]:
        rows = read_metrics(self.run.metrics)
        return [f"{counted(len(rows), 'update')} of the training"] if rows else []

    def _outcome(self) -> Iterator[Html]:
        """The first screen: main metrics, improvements, regressions and warnings."""
        if self.report is None or self.before is None:
            return
        yield tiles(self.report)
        yield from (tag("p", tag("b", f"{side}: "), text, cls="outcome") for side, text in in_short(self.report).items())
        yield tag("p", self.before.benchmark.limits, cls="note")
        yield paragraphs(self.report["warnings"], "warning")

    def _figures(self) -> Iterator[Html]:
        if self.before is None:
            return
        benchmark, about = self.before.benchmark, meanings(self.before.counts)
        if self.report is None:
            limits = tag("p", benchmark.limits, cls="note")
            figures, units = one_evaluation(self.before.figures), tag("p", "Shares are in %.", cls="soft")
            yield section(f"Before training: {benchmark.name}", limits, figures, about, units)
            return
        below = [*notes(self.report), *(limit for limit in self.report["limits"] if limit != benchmark.limits)]
        yield section(f"Before and after: {benchmark.name}", figures_table(self.report), about, paragraphs(below, "soft"))

    def _rounds(self) -> Iterator[Html]:
        if self.report is not None and "rounds" in self.report:
            yield section("Round by round", rounds_table(self.report))

    def _images(self) -> Iterator[Html]:
        if self.before is not None and self.after is not None:
            benchmark = self.before.benchmark
            yield section(
                "Descriptions",
                paragraphs([f"{which(benchmark)}.", tally(self.before, self.after)]),
                gallery(before_after_cells(self.before, self.after), legend(benchmark)),
            )

    def _training(self) -> Iterator[Html]:
        rows = read_metrics(self.run.metrics)
        if rows:
            signs = () if self.report else warning_signs(rows).values()
            yield section("Training", paragraphs(signs, "warning"), curves(rows))

    def judge(self) -> JudgeReport | None:
        """The judge's figures; None before it was checked."""
        if self._judge is None:
            self._judge = read_judge(self.run, self.source.labels)
        return self._judge

    def _judged(self) -> Iterator[Html]:
        try:
            found = self.judge()
        except UserError:  # a damaged file: the run says so, and this page may be what it says it on
            return
        if found is not None:
            uses = "judge" in self.config["settings"]
            lead = () if uses else (f"{self._method_name} needs no judge. CSR and FiSAO would train on this one.",)
            yield judge_section(found, "Can its judge be trusted?" if uses else "Can the judge be trusted?", *lead)

    def _picture(self) -> Iterator[Html]:
        method = self.config["method"]
        fragment, drawn = (self.run.plots / f"{method}.{kind}" for kind in ("html", "png"))
        if fragment.exists():
            yield section(f"How {self._method_name} works", Html(read_text(fragment)))
        elif drawn.exists():
            yield section(f"How {self._method_name} works", png(drawn.read_bytes(), f"Diagram of {method}"))

    def _adapter(self) -> Iterator[Html]:
        if self.report is not None:
            yield section("Use the adapter", commands(self._commands()))

    def _about_images(self) -> str:
        """The training images, and whether labels were used (the method's setting `labels`, if it has one)."""
        labels = self.config["settings"].get("labels")
        supervision = f"with labels of their objects (settings.labels: {labels})" if labels else "without labels"
        return f"Trained on {self.source.title}, {supervision}."

    def _commands(self) -> list[str]:
        """Commands that use the adapter."""
        model, adapter = (shlex.quote(str(path)) for path in (self.config["model"], self.run.adapter))
        return [
            f'visalign generate --model {model} --adapter-path {adapter} --image photo.jpg --prompt "What is this?"',
            f"visalign compare {model} {adapter} --model {model} --images {self.source.argument}",
            f"visalign run -c {shlex.quote(str(self.run.config))} --output ANOTHER-FOLDER    # the same run again",
        ]

    def _what_ran(self) -> Iterator[Html]:
        versions = read_versions(self.run.versions) if self.run.versions.exists() else {}
        yield section(
            "Settings and versions",
            facts(flat(self.config)),
            facts(versions.items(), "Versions"),
            facts(self._stages(), "Rows per stage"),
        )

    def _stages(self) -> list[tuple[str, str]]:
        """The finished stages in order of completion, with their number of rows."""
        files = [file for file in self.run.folder.glob("*.jsonl") if file.with_suffix(".settings.json").exists()]
        return [(file.stem, f"{_lines(file):,}") for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)]


def _memory(training: Mapping[str, float]) -> str:
    return f", peak memory {training['peak_memory']:.1f} GB" if "peak_memory" in training else ""


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by dotted name, as for --set."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, called(value) if name == "images" else str(value)


def _lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for _ in lines)
