"""Is the model whole, and is every shortcut exact? Runs the `checks`, and says what they found."""

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
    """found: the figure. wrong: what it means and what to do, where it is not `ok`."""

    check: str
    ok: bool
    found: str
    wrong: str = ""


def examine(policy: Policy, quick: bool = False) -> list[Finding]:
    """Every check, or the quick ones, which read words alone and take seconds at 7B. The policy is left as it was."""
    try:
        probe = ModelProbe(policy, pictures=not quick)
    except UserError as error:
        return [Finding("reading", False, str(error), "The model cannot read a prompt: its folder is not whole.")]
    return [_finding(check, probe) for check in CHECKS if check.quick or not quick]


def _finding(check: Check, probe: ModelProbe) -> Finding:
    try:
        ok, found = check.measure(probe)
    except UserError as error:
        ok, found = False, str(error)
    return Finding(check.name, ok, found, "" if ok else f"{check.meaning} {check.advice}")


def examine_adapter(policy: Policy, folder: Path) -> Finding:
    """Load an adapter, and compare the model with it switched off with the model before."""
    probe = ModelProbe(policy, pictures=False)
    base = probe.folded([0])
    policy.load_adapter(folder)
    on = probe.folded([0])
    with adapter_at(policy.model, 0):
        off = probe.folded([0])
    ok, found = switches(base, on, off)
    wrong = "Without the adapter the model must be the base to the last bit, and with it another." if not ok else ""
    return Finding(f"adapter {folder}", ok, found, wrong)


def stated_by(folder: Path) -> Finding:
    """Whether the model's folder says with which template and aspect it was trained, and whether its files agree on it."""
    ours, config = stated(folder), read_json(folder / "config.json")
    missing = [name for name in ("template", "aspect") if name not in ours]
    found = f"template {ours.get('template')}, aspect {ours.get('aspect')}"
    if missing:
        found = f"config.json does not say {' and '.join(missing)}; the family's own are taken"
    try:
        choice = choose(folder, config, ours=ours.get("template"))
    except UserError as error:
        return Finding("folder", False, found, str(error))
    said = [f"the template {choice.note}"] if choice.note and "template" in ours else []
    wrong = what_is_wrong(folder, config)
    return Finding("folder", not wrong, "; ".join([found, *said, *remarks(folder, config)]), " ".join(wrong))


def verdict(findings: Sequence[Finding]) -> str:
    """All of it in one sentence."""
    failed = [each.check for each in findings if not each.ok]
    if failed:
        return f"{len(failed)} of {counted(len(findings), 'check')} failed: {', '.join(failed)}."
    return f"All {counted(len(findings), 'check')} passed."


def require_same_model(config: Path, file: Path, model: str) -> None:
    """UserError where the run of this config.yaml was made with another model; `file` is what `require_sound` left there.

    A model may have been moved or renamed, so where its name is another the weights decide.
    """
    begun = load_recipe(config).get("model") if config.exists() else model
    if begun == model or not file.exists():
        return
    if read_json(file).get("base_fingerprint") != fingerprint(find_folder(model)):
        raise UserError(
            f"{config.parent} was made with the model {begun}, and this is {model}: add --model {begun} to go on there, or "
            "name another output folder."
        )


def require_sound(policy: Policy, file: Path) -> None:
    """The quick checks, before a training; what passed stands in `file` and is not checked again for the same base.

    Raises `UserError` that names every check that failed, with what it means and what to do.
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
        told = "\n".join(f"- {finding.check}: {finding.found}. {finding.wrong}" for finding in wrong)
        raise UserError(f"The model does not pass the checks that every training begins with:\n{told}")
    write_atomically(file, json.dumps(about, indent=1) + "\n")
    say(f"doctor: the model passes the quick checks ({duration(time.perf_counter() - started)}).")
