"""The names of a run's files. They stand here and nowhere else."""

from pathlib import Path

from mlx_visalign.data.training_log import METRICS


class RunFolder:
    """Where everything of a run is. Nothing is opened or made."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = folder / "config.yaml"
        self.versions = folder / "versions.json"
        self.checked = folder / "doctor.json"  # the model that passed the doctor's quick checks
        self.prompts = folder / "prompts.jsonl"
        self.held_out_pairs = folder / "held_out_pairs.jsonl"
        self.metrics = folder / METRICS
        self.rounds = folder / "rounds.json"  # what each round cost and brought, of a method that has rounds
        self.adapter = folder / "adapter"
        self.report = folder / "report.json"
        self.page = folder / "report.html"
        self.plots = folder / "plots"

    def rows(self, name: str) -> Path:
        """The finished rows of a stage."""
        return self.folder / f"{name}.jsonl"

    def pairs(self) -> list[Path]:
        """The pairs that were trained on, a file for each round that has any."""
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
    """pairs, pairs-2, pairs-3 ... by round; held_out_pairs for those about held-out images."""
    return ("held_out_" if held_out else "") + what + (f"-{round_number}" if round_number > 1 else "")
