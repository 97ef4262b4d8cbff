"""What the doctor checks: each shortcut measured on a `ModelProbe`, what it means where it does not hold, and what to do.

The shortcuts (batches, the cache, the fold, an adapter that is switched off) must change nothing but rounding. Whatever
should be the same to the last bit is compared so; the rest with tolerances from `tolerances`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np
from PIL import Image

from mlx_visalign.data.prompt_template import IMAGE, TEMPLATES
from mlx_visalign.data.records import Pair
from mlx_visalign.inference.policy import Policy
from mlx_visalign.models import families
from mlx_visalign.models.chat_template import same_words
from mlx_visalign.models.lora import adapter_at
from mlx_visalign.preflight.model_probe import ANSWERS, QUESTIONS, ModelProbe, gradients, one_more_round
from mlx_visalign.training.dpo import PreferenceSettings, pair_batch, preference_loss, with_reference
from mlx_visalign.utils.tolerances import SAME_LOSS

Measured = tuple[bool, str]  # whether it holds, and the figure


@dataclass(frozen=True)
class Check:
    """meaning: what it is for a training that this does not hold. advice: what to do then. quick: made before each one."""

    name: str
    measure: Callable[[ModelProbe], Measured]
    meaning: str
    advice: str
    quick: bool = True


def _same(one: np.ndarray, other: np.ndarray, allowed: float) -> Measured:
    apart = float(np.abs(one - other).max())
    return apart <= allowed, f"{apart:.2g} nats apart, {allowed:.2g} allowed"


def _largest(change: mx.array) -> float:
    return float(np.array(mx.abs(change).max().astype(mx.float32)))


def _image_tokens(probe: ModelProbe) -> Measured:
    policy, images = probe.policy, gradients()
    embeds = policy.family.embeds(policy.model, policy.features([policy.pixels(image) for image in images]))  # lazy
    told, wanted = [policy.image_tokens_of(image) for image in images], [len(one) for one in embeds]
    counts = [policy.prompt_ids(QUESTIONS[0], number).count(policy.image_token) for number in told]
    holds = told == counts == wanted and max(told) <= policy.image_tokens
    return holds, f"{counts[0]} in a prompt, {wanted[0]} features an image"


def _template(probe: ModelProbe) -> Measured:
    policy = probe.policy
    if not same_words(policy.template, policy.family.template):
        return False, f"{policy.template} on a {policy.family.model_type}"
    ids = policy.prompt_ids(QUESTIONS[0])
    text = policy.tokenizer.decode([token for token in ids if token != policy.image_token])
    text = text.removeprefix(policy.tokenizer.bos_token or "")
    expected = TEMPLATES[policy.template].replace(IMAGE, "").replace("{question}", QUESTIONS[0])
    return "".join(text.split()) == "".join(expected.split()), f"{policy.template}: {' '.join(text.split())!r}"


def _aspect(probe: ModelProbe) -> Measured:
    """A white picture twice as wide as high: padded, its upper edge has the mean colour, which is nearly 0."""
    preprocessing = probe.policy.preprocessing
    pixels = preprocessing(Image.new("RGB", (2 * preprocessing.size, preprocessing.size), "white"))
    if pixels.shape != (preprocessing.size, preprocessing.size, 3):
        return False, f"pixels of shape {pixels.shape}"
    found = "pad" if _largest(pixels[0]) < 0.1 else "crop"
    return found == preprocessing.aspect, f"{preprocessing.aspect} is set, {found} is done"


def _causality(probe: ModelProbe) -> Measured:
    """Flip the last token: nothing before it may move, and what comes after it must."""
    answer = probe.answers[0]
    flipped = [*answer[:-1], answer[0]]
    folded = [probe.answer_states(ids) for ids in (answer, flipped)]
    plain = [probe.plain_logits(0, ids) for ids in (answer, flipped)]
    prompts = [probe.prompt_keys(last) for last in answer[:2]]
    pairs = (folded, plain, prompts)
    moved = max(_largest(one[:, :-1] - other[:, :-1]) for one, other in pairs)
    alive = min(_largest(one[:, -1] - other[:, -1]) for one, other in pairs)
    return moved == 0 and alive > 0, f"earlier tokens moved by {moved:.2g}, 0 allowed"


def _batch(probe: ModelProbe) -> Measured:
    return _same(probe.together, probe.alone, probe.allowed)


def _cache(probe: ModelProbe) -> Measured:
    return _same(probe.stepwise(), probe.alone, probe.allowed)


def _fold(probe: ModelProbe) -> Measured:
    return _same(probe.together, probe.plain(), probe.allowed)


def _adapter_off(probe: ModelProbe) -> Measured:
    base = probe.folded([0])
    with one_more_round(probe.policy, changes=True) as rounds:
        on = probe.folded([0])
        with adapter_at(probe.policy.model, rounds):
            off = probe.folded([0])
    return switches(base, on, off)


def switches(base: np.ndarray, on: np.ndarray, off: np.ndarray) -> Measured:
    """Whether an adapter that is off leaves the base to the last bit, and one that is on does not."""
    apart, change = float(np.abs(off - base).max()), float(np.abs(on - base).max())
    return apart == 0 and change > 0, f"off: {apart:.2g} nats from the base, 0 allowed; on: {change:.2g}"


def _first_loss(probe: ModelProbe) -> Measured:
    """DPO's, and mDPO's, which damages the image."""
    plain, multimodal = (_apart_from_start(probe.policy, PreferenceSettings(loss_type=one)) for one in ("sigmoid", "mdpo"))
    holds = abs(plain) <= SAME_LOSS and abs(multimodal) <= 3 * SAME_LOSS
    return holds, f"{plain:.2g} from ln 2, {SAME_LOSS:.2g} allowed; mDPO's {multimodal:.2g} from 3 ln 2, three times that"


def _apart_from_start(policy: Policy, settings: PreferenceSettings) -> float:
    """How far the first loss of a pair is from where it should start."""
    with TemporaryDirectory() as folder:
        image = Path(folder, "gradient.png")
        gradients()[0].save(image)
        chosen, rejected = ANSWERS
        pairs = [Pair("doctor", (str(image),), QUESTIONS[0], chosen, rejected)]
        pairs = with_reference(policy, pairs, settings.loss.reads)
        with one_more_round(policy, changes=False):
            loss, _ = preference_loss(policy, settings)(pair_batch(policy, pairs))
            return float(np.array(loss)) - settings.loss.start


MLX = "Compare with MLX's release notes and with an older mlx (versions.json of a run that was right says which)"
TRAINED = ", ".join(f'"{one.template}" for {one.title}' for one in map(families.find, families.BUILT_IN))
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
        f'{{"template": NAME}}, where NAME is {TRAINED}.',
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
        f"An attention mask is not what it was, mlx-vlm's or MLX's. Install mlx-vlm >= 0.7.10, < 0.8. {MLX}.",
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
