"""Is the model whole, and is every shortcut exact? What is checked, what a failure means, and what to do then.

The shortcuts (batches, the cache, the fold, an adapter that is switched off) must change nothing but rounding. Whatever
should be the same to the last bit is compared so; the rest with tolerances from `precision`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from mlx_visalign import vlm
from mlx_visalign.errors import UserError
from mlx_visalign.files import write_atomically
from mlx_visalign.lora import adapter_at
from mlx_visalign.patient import ANSWERS, QUESTIONS, Patient, gradients, one_more_round
from mlx_visalign.policy import Policy
from mlx_visalign.precision import SAME_LOSS
from mlx_visalign.preference import pair_batch, preference_loss, with_reference
from mlx_visalign.progress import say
from mlx_visalign.records import Pair
from mlx_visalign.template import IMAGE, TEMPLATES
from mlx_visalign.weights import stated

Measured = tuple[bool, str]  # whether it holds, and the figure


@dataclass(frozen=True)
class Check:
    """meaning: what it is for a training that this does not hold. advice: what to do then. quick: made before each one."""

    name: str
    measure: Callable[[Patient], Measured]
    meaning: str
    advice: str
    quick: bool = True


@dataclass(frozen=True)
class Finding:
    """found: the figure. wrong: what it means and what to do, where it is not `ok`."""

    check: str
    ok: bool
    found: str
    wrong: str = ""


def _same(one: np.ndarray, other: np.ndarray, allowed: float) -> Measured:
    apart = float(np.abs(one - other).max())
    return apart <= allowed, f"{apart:.2g} nats apart, {allowed:.2g} allowed"


def _largest(change: mx.array) -> float:
    return float(np.array(mx.abs(change).max().astype(mx.float32)))


def _image_tokens(patient: Patient) -> Measured:
    policy = patient.policy
    wanted = vlm.project(policy.model, policy.features(policy.pixels(gradients()[0])[None])).shape[1]  # lazy: no arithmetic
    counts = [policy.prompt_ids(question).count(policy.image_token) for question in QUESTIONS]
    return {policy.image_tokens, *counts} == {wanted}, f"{counts[0]} in a prompt, {wanted} features an image"


def _template(patient: Patient) -> Measured:
    policy = patient.policy
    if (policy.template == "onevision") != (policy.model.config.model_type == "llava_onevision"):
        return False, f"{policy.template} on a {policy.model.config.model_type}"
    ids = policy.prompt_ids(QUESTIONS[0])
    text = policy.tokenizer.decode([token for token in ids if token != policy.image_token])
    text = text.removeprefix(policy.tokenizer.bos_token or "")
    expected = TEMPLATES[policy.template].replace(IMAGE, "").replace("{question}", QUESTIONS[0])
    return "".join(text.split()) == "".join(expected.split()), f"{policy.template}: {' '.join(text.split())!r}"


def _aspect(patient: Patient) -> Measured:
    """A white picture twice as wide as high: padded, its upper edge has the mean colour, which is nearly 0."""
    preprocessing = patient.policy.preprocessing
    pixels = patient.policy.pixels(Image.new("RGB", (2 * preprocessing.size, preprocessing.size), "white"))
    if pixels.shape != (preprocessing.size, preprocessing.size, 3):
        return False, f"pixels of shape {pixels.shape}"
    found = "pad" if _largest(pixels[0]) < 0.1 else "crop"
    return found == preprocessing.aspect, f"{preprocessing.aspect} is set, {found} is done"


def _causality(patient: Patient) -> Measured:
    """Flip the last token: nothing before it may move, and what comes after it must."""
    answer = patient.answers[0]
    flipped = [*answer[:-1], answer[0]]
    folded = [patient.answer_states(ids) for ids in (answer, flipped)]
    plain = [patient.plain_logits(0, ids) for ids in (answer, flipped)]
    prompts = [patient.prompt_keys(last) for last in answer[:2]]
    pairs = (folded, plain, prompts)
    moved = max(_largest(one[:, :-1] - other[:, :-1]) for one, other in pairs)
    alive = min(_largest(one[:, -1] - other[:, -1]) for one, other in pairs)
    return moved == 0 and alive > 0, f"earlier tokens moved by {moved:.2g}, 0 allowed"


def _batch(patient: Patient) -> Measured:
    return _same(patient.together, patient.alone, patient.allowed)


def _cache(patient: Patient) -> Measured:
    return _same(patient.stepwise(), patient.alone, patient.allowed)


def _fold(patient: Patient) -> Measured:
    return _same(patient.together, patient.plain(), patient.allowed)


def _adapter_off(patient: Patient) -> Measured:
    base = patient.folded([0])
    with one_more_round(patient.policy, changes=True) as rounds:
        on = patient.folded([0])
        with adapter_at(patient.policy.model, rounds):
            off = patient.folded([0])
    apart, change = float(np.abs(off - base).max()), float(np.abs(on - base).max())
    return apart == 0 and change > 0, f"off: {apart:.2g} nats from the base, 0 allowed; on: {change:.2g}"


def _first_loss(patient: Patient) -> Measured:
    policy = patient.policy
    with TemporaryDirectory() as folder:
        image = Path(folder, "gradient.png")
        gradients()[0].save(image)
        chosen, rejected = ANSWERS
        pairs = with_reference(policy, [Pair("doctor", (str(image),), QUESTIONS[0], chosen, rejected)])
        with one_more_round(policy, changes=False):
            loss, _ = preference_loss(policy, beta=0.1)(pair_batch(policy, pairs))
            found = float(np.array(loss))
    return abs(found - math.log(2)) <= SAME_LOSS, f"{found:.7f}, ln 2 is {math.log(2):.7f}"


MLX = "Compare with MLX's release notes and with an older mlx (versions.json of a run that was right says which)"
CHECKS = (
    Check(
        "image tokens",
        _image_tokens,
        "An image would take more or fewer places in the prompt than it has features.",
        "config.json and preprocessor_config.json are of different models: take both from where the weights come from.",
    ),
    Check(
        "template",
        _template,
        "The model would read other words around the question than those it was trained on, and hallucinate more.",
        'Take the tokenizer from where the weights come from, and name the template in config.json: "visalign": '
        '{"template": "vicuna_v1"} for LLaVA-1.5, "onevision" for LLaVA-OneVision.',
    ),
    Check(
        "aspect",
        _aspect,
        "The model would see images padded or cropped otherwise than it was trained on.",
        "Take preprocessor_config.json from where the weights come from; if it is, report this as a fault of this package.",
    ),
    Check(
        "causality",
        _causality,
        "A token sees what comes after it: log-probabilities are no probabilities of anything, and training learns nonsense.",
        f"mlx-vlm's attention mask is not what it was. Install mlx-vlm >= 0.7.10, < 0.8. {MLX}.",
    ),
    Check(
        "batch = single",
        _batch,
        "What a pair teaches would depend on which other pairs are in its batch.",
        f"Train with --batch-size 1 until it is mended. {MLX}.",
    ),
    Check(
        "cached = uncached",
        _cache,
        "Answers would come from another model than the one that is scored and trained.",
        f"The positions or the mask over the cache are wrong. {MLX}.",
    ),
    Check(
        "fold = plain",
        _fold,
        "The shared prefix would not be the prefix that each answer has by itself, so losses and gradients are wrong.",
        f"{MLX}, and report this as a fault of this package.",
    ),
    Check(
        "adapter off = base",
        _adapter_off,
        "The reference of DPO would move with the policy, or a trained adapter would have no effect.",
        "Something has merged an adapter into these weights or replaced layers after loading: load the model afresh.",
    ),
    Check(
        "first DPO loss = ln 2",
        _first_loss,
        "Before the first update policy and reference are one model, so the margin must be 0. Here it is not.",
        "The reference is scored otherwise than the policy is trained: report this as a fault of this package.",
        quick=False,
    ),
)


def examine(policy: Policy, quick: bool = False) -> list[Finding]:
    """Every check, or the quick ones, which read words alone and take seconds at 7B. The policy is left as it was."""
    try:
        patient = Patient(policy, pictures=not quick)
    except UserError as error:
        return [Finding("reading", False, str(error), "The model cannot read a prompt: its folder is not whole.")]
    return [_finding(check, patient) for check in CHECKS if check.quick or not quick]


def _finding(check: Check, patient: Patient) -> Finding:
    try:
        ok, found = check.measure(patient)
    except UserError as error:
        ok, found = False, str(error)
    return Finding(check.name, ok, found, "" if ok else f"{check.meaning} {check.advice}")


def examine_adapter(policy: Policy, folder: Path) -> Finding:
    """Load an adapter, and compare the model with it switched off with the model before."""
    patient = Patient(policy, pictures=False)
    base = patient.folded([0])
    policy.load_adapter(folder)
    on = patient.folded([0])
    with adapter_at(policy.model, 0):
        off = patient.folded([0])
    apart, change = float(np.abs(off - base).max()), float(np.abs(on - base).max())
    ok = apart == 0 and change > 0
    wrong = "Without the adapter the model must be the base to the last bit, and with it another." if not ok else ""
    return Finding(f"adapter {folder}", ok, f"off: {apart:.2g} nats from the base, 0 allowed; on: {change:.2g}", wrong)


def stated_by(folder: Path) -> Finding:
    """Whether the model's folder says with which template and aspect it was trained."""
    ours = stated(folder)
    missing = [name for name in ("template", "aspect") if name not in ours]
    if not missing:
        return Finding("folder", True, f"template {ours['template']}, aspect {ours['aspect']}")
    return Finding("folder", True, f"config.json does not say {' and '.join(missing)}; the family's own are taken")


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
    if file.exists() and vlm.read_json(file) == about:
        return
    wrong = [finding for finding in examine(policy, quick=True) if not finding.ok]
    if wrong:
        told = "\n".join(f"- {finding.check}: {finding.found}. {finding.wrong}" for finding in wrong)
        raise UserError(f"The model does not pass the checks that every training begins with:\n{told}")
    write_atomically(file, json.dumps(about, indent=1) + "\n")
    say("doctor: the model passes the quick checks.")
