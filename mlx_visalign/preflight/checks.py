"""The doctor's checks of every shortcut on a `ModelProbe`.

The shortcuts (batches, the KV cache, the prefix cache, an adapter that is switched off) must change nothing but rounding.
What should be bit-identical is compared exactly, everything else with the tolerances of `tolerances`.
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
from mlx_visalign.models.chat_template import same_chat_format
from mlx_visalign.models.lora import adapter_at
from mlx_visalign.preflight.model_probe import ANSWERS, QUESTIONS, ModelProbe, gradients, one_more_round
from mlx_visalign.training.dpo import PreferenceSettings, pair_batch, preference_loss, with_reference
from mlx_visalign.utils.tolerances import SAME_LOSS

Measured = tuple[bool, str]  # whether it passed, and the measured value


@dataclass(frozen=True)
class Check:
    """A check and what its failure means.

    meaning  the effect of a failure on training
    advice   what to do about it
    quick    whether it runs before every training
    """

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
    expected, wanted = [policy.image_tokens_of(image) for image in images], [len(one) for one in embeds]
    counts = [policy.prompt_ids(QUESTIONS[0], number).count(policy.image_token) for number in expected]
    holds = expected == counts == wanted and max(expected) <= policy.image_tokens
    return holds, f"{counts[0]} in a prompt, {wanted[0]} features per image"


def _template(probe: ModelProbe) -> Measured:
    policy = probe.policy
    if not same_chat_format(policy.template, policy.family.template):
        return False, f"{policy.template} on a {policy.family.model_type}"
    ids = policy.prompt_ids(QUESTIONS[0])
    text = policy.tokenizer.decode([token for token in ids if token != policy.image_token])
    text = text.removeprefix(policy.tokenizer.bos_token or "")
    expected = TEMPLATES[policy.template].replace(IMAGE, "").replace("{question}", QUESTIONS[0])
    return "".join(text.split()) == "".join(expected.split()), f"{policy.template}: {' '.join(text.split())!r}"


def _aspect(probe: ModelProbe) -> Measured:
    """A white image twice as wide as high: if padded, its upper edge has the mean colour, which is normalised to nearly 0."""
    preprocessing = probe.policy.preprocessing
    pixels = preprocessing(Image.new("RGB", (2 * preprocessing.size, preprocessing.size), "white"))
    if pixels.shape != (preprocessing.size, preprocessing.size, 3):
        return False, f"pixels of shape {pixels.shape}"
    found = "pad" if _largest(pixels[0]) < 0.1 else "crop"
    return found == preprocessing.aspect, f"{preprocessing.aspect} is set, images are processed with {found}"


def _causality(probe: ModelProbe) -> Measured:
    """Change the last token: nothing before it may change, and what follows it must."""
    answer = probe.answers[0]
    flipped = [*answer[:-1], answer[0]]
    cached = [probe.answer_states(ids) for ids in (answer, flipped)]
    plain = [probe.plain_logits(0, ids) for ids in (answer, flipped)]
    prompts = [probe.prompt_keys(last) for last in answer[:2]]
    pairs = (cached, plain, prompts)
    moved = max(_largest(one[:, :-1] - other[:, :-1]) for one, other in pairs)
    alive = min(_largest(one[:, -1] - other[:, -1]) for one, other in pairs)
    return moved == 0 and alive > 0, f"earlier tokens moved by {moved:.2g}, 0 allowed"


def _batch(probe: ModelProbe) -> Measured:
    return _same(probe.together, probe.alone, probe.allowed)


def _cache(probe: ModelProbe) -> Measured:
    return _same(probe.stepwise(), probe.alone, probe.allowed)


def _prefix_cache(probe: ModelProbe) -> Measured:
    return _same(probe.together, probe.plain(), probe.allowed)


def _adapter_off(probe: ModelProbe) -> Measured:
    base = probe.cached([0])
    with one_more_round(probe.policy, changes=True) as rounds:
        on = probe.cached([0])
        with adapter_at(probe.policy.model, rounds):
            off = probe.cached([0])
    return switches(base, on, off)


def switches(base: np.ndarray, on: np.ndarray, off: np.ndarray) -> Measured:
    """Whether an adapter can be switched off exactly.

    Off, the model must equal the base bit for bit; on, it must differ.
    """
    apart, change = float(np.abs(off - base).max()), float(np.abs(on - base).max())
    return apart == 0 and change > 0, f"off: {apart:.2g} nats from the base, 0 allowed; on: {change:.2g}"


def _first_loss(probe: ModelProbe) -> Measured:
    """The first loss of DPO, and of mDPO, which damages the image."""
    plain, multimodal = (_apart_from_start(probe.policy, PreferenceSettings(loss_type=one)) for one in ("sigmoid", "mdpo"))
    holds = abs(plain) <= SAME_LOSS and abs(multimodal) <= 3 * SAME_LOSS
    return (
        holds,
        f"{plain:.2g} from ln 2, {SAME_LOSS:.2g} allowed; mDPO {multimodal:.2g} from 3 ln 2, {3 * SAME_LOSS:.2g} allowed",
    )


def _apart_from_start(policy: Policy, settings: PreferenceSettings) -> float:
    """The difference of a pair's first loss from its expected value."""
    with TemporaryDirectory() as folder:
        image = Path(folder, "gradient.png")
        gradients()[0].save(image)
        chosen, rejected = ANSWERS
        pairs = [Pair("doctor", (str(image),), QUESTIONS[0], chosen, rejected)]
        pairs = with_reference(policy, pairs, settings.loss.reads)
        with one_more_round(policy, changes=False):
            loss, _ = preference_loss(policy, settings)(pair_batch(policy, pairs))
            return float(np.array(loss)) - settings.loss.start


MLX = "Check MLX's release notes, or try an older mlx (versions.json of a run that worked says which)"
TRAINED = ", ".join(f'"{one.template}" for {one.title}' for one in map(families.find, families.BUILT_IN))
CHECKS = (
    Check(
        "image tokens",
        _image_tokens,
        "An image would have more or fewer tokens in the prompt than it has features.",
        "config.json and preprocessor_config.json are from different models: take both from the source of the weights.",
    ),
    Check(
        "template",
        _template,
        "The prompt would differ from the one the model was trained with, and the model would hallucinate more.",
        'Take the tokenizer from the source of the weights, and name the template in config.json: "visalign": '
        f'{{"template": NAME}}, where NAME is {TRAINED}.',
    ),
    Check(
        "aspect",
        _aspect,
        "The model would see images padded or cropped differently from its training.",
        "Take preprocessor_config.json from the source of the weights; if you did, report this as a bug in this package.",
    ),
    Check(
        "causality",
        _causality,
        "A token sees what comes after it: log-probabilities are meaningless, and training would learn nonsense.",
        f"The attention mask of mlx-vlm or MLX has changed. Install mlx-vlm >= 0.7.10, < 0.8. {MLX}.",
    ),
    Check(
        "batch = single",
        _batch,
        "The gradient of a pair would depend on the other pairs in its batch.",
        f"Train with --batch-size 1 until this is fixed. {MLX}.",
    ),
    Check(
        "cached = uncached",
        _cache,
        "Answers would be sampled from a different distribution than the one that is scored and trained.",
        f"The cache's positions or mask are wrong. {MLX}.",
    ),
    Check(
        "prefix cache = plain",
        _prefix_cache,
        "The shared prefix would differ from the prefix of each answer alone, so losses and gradients would be wrong.",
        f"{MLX}, and report this as a bug in this package.",
    ),
    Check(
        "adapter off = base",
        _adapter_off,
        "The reference of DPO would move with the policy, or a trained adapter would have no effect.",
        "Something merged an adapter into these weights or replaced layers after loading: load the model again.",
    ),
    Check(
        "first DPO loss = ln 2",
        _first_loss,
        "Before the first update policy and reference are the same model, so the margin must be 0. Here it is not.",
        "The reference is scored differently from the policy in training: report this as a bug in this package.",
        quick=False,
    ),
)
