"""The names of a run's files, defined only here."""

from pathlib import Path

from mlx_visalign.data.training_log import METRICS


class RunFolder:
    """Paths of a run's files; opens and creates nothing."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = folder / "config.yaml"
        self.versions = folder / "versions.json"
        self.checked = folder / "doctor.json"  # the model that passed the doctor's quick checks
        self.prompts = folder / "prompts.jsonl"
        self.held_out_pairs = folder / "held_out_pairs.jsonl"
        self.metrics = folder / METRICS
        self.rounds = folder / "rounds.json"  # each round's cost and figures, for methods with rounds
        self.judge = folder / "judge.json"  # whether the judge can be trusted, for methods that have one
        self.blank = folder / "judge-blank.png"  # the blank image that the judge is checked on
        self.adapter = folder / "adapter"
        self.report = folder / "report.json"
        self.page = folder / "report.html"
        self.plots = folder / "plots"

    def rows(self, name: str) -> Path:
        """The file of a stage's finished rows."""
        return self.folder / f"{name}.jsonl"

    def pairs(self) -> list[Path]:
        """The files of trained pairs, one per round."""
        files = [self.rows(stage_name("pairs", 1))]
        while (file := self.rows(stage_name("pairs", len(files) + 1))).exists():
            files.append(file)
        return files

    def round(self, number: int) -> Path:
        """The folder of a round's training, counted from 1."""
        return self.folder / f"round-{number}"

    def control(self, name: str) -> Path:
        """The folder of a control's own run."""
        return self.folder / "controls" / name


def stage_name(what: str, round_number: int = 1, held_out: bool = False) -> str:
    """A stage's name by round: pairs, pairs-2, pairs-3 ...

    held_out_pairs for pairs about held-out images.
    """
    return ("held_out_" if held_out else "") + what + (f"-{round_number}" if round_number > 1 else "")
