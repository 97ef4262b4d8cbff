"""Verifies that masking, caching and batching do not change results.

Runs the `checks` on a model and reports what they found.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_visalign.inference.policy import Policy, find_folder
from mlx_visalign.models.adapter_files import fingerprint, stated
from mlx_visalign.models.chat_template import choose
from mlx_visalign.models.lora import adapter_at
from mlx_visalign.models.model_folder import remarks, what_is_wrong
from mlx_visalign.preflight.checks import CHECKS, Check, switches
from mlx_visalign.preflight.model_probe import ModelProbe
from mlx_visalign.utils.config import load_recipe
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json, write_atomically
from mlx_visalign.utils.formatting import counted, duration


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    found  the measured value
    wrong  if it is not `ok`: what that means and what to do
    """

    check: str
    ok: bool
    found: str
    wrong: str = ""


def examine(policy: Policy, quick: bool = False) -> list[Finding]:
    """Run all checks, or only the quick ones.

    Quick checks use text only and take seconds at 7B. The policy is unchanged afterwards.
    """
    try:
        probe = ModelProbe(policy, pictures=not quick)
    except UserError as error:
        return [Finding("reading", False, str(error), "The model cannot read a prompt: its folder is incomplete.")]
    return [_finding(check, probe) for check in CHECKS if check.quick or not quick]


def _finding(check: Check, probe: ModelProbe) -> Finding:
    try:
        ok, found = check.measure(probe)
    except UserError as error:
        ok, found = False, str(error)
    return Finding(check.name, ok, found, "" if ok else f"{check.meaning} {check.advice}")


def examine_adapter(policy: Policy, folder: Path) -> Finding:
    """Load an adapter and check that it switches off."""
    probe = ModelProbe(policy, pictures=False)
    base = probe.cached([0])
    policy.load_adapter(folder)
    on = probe.cached([0])
    with adapter_at(policy.model, 0):
        off = probe.cached([0])
    ok, found = switches(base, on, off)
    wrong = "" if ok else "With the adapter off the model must equal the base bit for bit, and with it on it must differ."
    return Finding(f"adapter {folder}", ok, found, wrong)


def stated_by(folder: Path) -> Finding:
    """Check the template and aspect stated in a model's folder.

    Also checks that the folder's files do not contradict each other.
    """
    ours, config = stated(folder), read_json(folder / "config.json")
    missing = [name for name in ("template", "aspect") if name not in ours]
    found = f"template {ours.get('template')}, aspect {ours.get('aspect')}"
    if missing:
        found = f"config.json does not state {' and '.join(missing)}; using the model family's default"
    try:
        choice = choose(folder, config, ours=ours.get("template"))
    except UserError as error:
        return Finding("folder", False, found, str(error))
    said = [f"the template {choice.note}"] if choice.note and "template" in ours else []
    wrong = what_is_wrong(folder, config)
    return Finding("folder", not wrong, "; ".join([found, *said, *remarks(folder, config)]), " ".join(wrong))


def summarize(findings: Sequence[Finding]) -> str:
    """All findings in one sentence."""
    failed = [each.check for each in findings if not each.ok]
    if failed:
        return f"{len(failed)} of {counted(len(findings), 'check')} failed: {', '.join(failed)}."
    return f"All {counted(len(findings), 'check')} passed."


def require_same_model(config: Path, file: Path, model: str) -> None:
    """Raise UserError if a run was started with another model.

    `config` is the run's config.yaml, `file` the one that `require_sound` wrote. A model may have been moved or renamed, so
    if the names differ, the weights decide.
    """
    begun = load_recipe(config).get("model") if config.exists() else model
    if begun == model or not file.exists():
        return
    if read_json(file).get("base_fingerprint") != fingerprint(find_folder(model)):
        raise UserError(
            f"{config.parent} was started with the model {begun}, not {model}. Add --model {begun} to resume it, or choose "
            "another output folder."
        )


def require_sound(policy: Policy, file: Path) -> None:
    """Run the quick checks before training, once per base model.

    `file` records the model that passed. Raises `UserError` with every check that failed, what it means and what to do.
    """
    about: dict[str, Any] = {
        **policy.identity,
        "dtype": policy.dtype,
        "mlx": version("mlx"),
        "device": str(mx.default_device()),
    }
    if file.exists() and read_json(file) == about:
        return
    started = time.perf_counter()
    wrong = [finding for finding in examine(policy, quick=True) if not finding.ok]
    if wrong:
        faults = "\n".join(f"- {finding.check}: {finding.found}. {finding.wrong}" for finding in wrong)
        raise UserError(f"The model fails checks that it must pass before training:\n{faults}")
    write_atomically(file, json.dumps(about, indent=1) + "\n")
    say(f"doctor: the model passes the quick checks ({duration(time.perf_counter() - started)}).")
