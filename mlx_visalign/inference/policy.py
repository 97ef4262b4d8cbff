"""A LLaVA that answers, scores answers and trains LoRA adapters."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast, get_args

import mlx.core as mx
from jaxtyping import Bool, Float

from mlx_visalign.convert.steps.fingerprint import source_fingerprint
from mlx_visalign.data import prompt_template as templates
from mlx_visalign.data.images import Aspect, Picture, Preprocessing, image_digest, open_image
from mlx_visalign.data.records import Pair
from mlx_visalign.data.template_marks import asked
from mlx_visalign.inference.logprobs import sum_logps, token_logps
from mlx_visalign.inference.prefix_cache import Continuations, Prefix, extend, prefill, right_pad
from mlx_visalign.inference.sampling import Sampling, sample
from mlx_visalign.models import families
from mlx_visalign.models.adapter_files import check_base, fingerprint, is_whole, read_adapter, stated
from mlx_visalign.models.chat_template import choose
from mlx_visalign.models.decoder import Decoder, fitted, merge
from mlx_visalign.models.families.family import Features
from mlx_visalign.models.hub import find_model
from mlx_visalign.models.loading import load_model
from mlx_visalign.models.lora import LoRASettings, adapter_at, attach, bind, save_adapter
from mlx_visalign.models.model_folder import TOKENIZER, TOKENIZER_FILES, remarks, require_whole
from mlx_visalign.utils.arguments import DESCRIBE
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError, plainly
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.lfs_pointers import refuse_pointer
from mlx_visalign.utils.schema import build, shown
from mlx_visalign.utils.seeding import key_for

TINY = Path(__file__).parents[1] / "tiny_world" / "tiny" / "llava"
PROBE = DESCRIBE  # a fixed prompt for comparing logits


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    text      without special tokens
    ids       all tokens, end token included
    finished  false if max_tokens cut it off
    """

    text: str
    ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Reading:
    """Log-probabilities and states of n right-padded answers.

    logps   log p(token | image, prompt, tokens before it), in float32
    mask    true where a token is real
    states  the final hidden state before each token, and after the last one
    """

    logps: Float[mx.array, "n l"]
    mask: Bool[mx.array, "n l"]
    states: Float[mx.array, "n l+1 e"]


class FeatureCache:
    """LRU cache of clean images' vision features, in float16.

    Features are float16 on a cache miss too, so results do not depend on the cache's size or on a restart.
    """

    def __init__(self, gigabytes: float):
        self.limit, self.size = gigabytes * 1e9, 0
        self.entries: OrderedDict[str, mx.array] = OrderedDict()

    def get(self, key: str) -> mx.array | None:
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key: str, features: mx.array) -> None:
        self.entries[key] = features
        self.size += features.nbytes
        while self.size > self.limit and len(self.entries) > 1:
            self.size -= self.entries.popitem(last=False)[1].nbytes


class Policy:
    """A LLaVA with its tokenizer, template and preprocessing.

    `model` is mlx-vlm's; other code uses it only through this class.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        preprocessing: Preprocessing,
        template: templates.Template,
        base: str,
        cache_gb: float,
        source: Callable[[], str] | None = None,
        positions: int | None = None,
    ):
        """See `load`, which makes one from a folder.

        base       the fingerprint of the weights
        source     returns the fingerprint of the weights that they were converted from
        positions  the context length in tokens, if the model's config states it
        """
        self.model, self.tokenizer, self.preprocessing, self.template = model, tokenizer, preprocessing, template
        self.base, self._find_source = base, source
        self.positions = positions
        self.image_token = model.config.image_token_index
        self.family = families.of(model)
        self.image_tokens = self.family.image_tokens(model)
        self.end = tokenizer.eos_token_id
        self.checkpoint = False  # recompute layers in the backward pass: less memory, 1.5 times the time
        self.cache = FeatureCache(cache_gb)

    @property
    def dtype(self) -> str:
        """The weights' type: "float32", "bfloat16", "4-bit" and so on."""
        decoder = self.decoder
        return f"{decoder.embed.bits}-bit" if hasattr(decoder.embed, "bits") else str(decoder.norm.weight.dtype).split(".")[-1]

    @property
    def decoder(self) -> Decoder:
        """The parts of the language model."""
        return self.family.decoder(self.model)

    @cached_property
    def source(self) -> str:
        """Fingerprint of the source weights.

        It is the same for every precision that they were converted to.
        """
        return self.base if self._find_source is None else self._find_source()

    @property
    def identity(self) -> dict[str, str]:
        """Template, aspect and base fingerprint, which an adapter must match."""
        return {"template": self.template, "aspect": self.preprocessing.aspect, "base_fingerprint": self.base}

    # -- tokens and pixels --------------------------------------------------------------------------------------------

    def prompt_ids(self, question: str, image_tokens: int | None = None) -> list[int]:
        """Token ids of the complete prompt, image tokens included.

        Without `image_tokens` their number is the maximum per image; `prefill` adjusts it to the actual image.
        """
        return templates.prompt_ids(self.tokenizer, self.template, question, image_tokens or self.image_tokens)

    def image_tokens_of(self, image: Picture) -> int:
        """The number of image tokens of an image.

        The image is opened only if the number depends on its size.
        """
        if not self.family.varies:
            return self.image_tokens
        opened = open_image(image)
        return self.family.image_tokens_of(self.model, opened.height, opened.width)

    def response_ids(self, text: str, ended: bool = True) -> list[int]:
        """An answer's token ids, end token included if it `ended`."""
        return templates.response_ids(self.tokenizer, text, ended)

    def pair_ids(self, pair: Pair) -> list[list[int]]:
        """The token ids of a pair's chosen and rejected answer."""
        return [self.response_ids(text, pair.ended) for text in (pair.chosen, pair.rejected)]

    def pixels(self, image: Picture) -> Float[mx.array, "h w 3"]:
        """The preprocessed image, as the vision tower expects it.

        Opened (see `open_image`), padded or cropped, resized and normalised.
        """
        return self.family.pixels(self.preprocessing, image)

    def features(self, pixels: Float[mx.array, "b h w 3"] | Sequence[Float[mx.array, "_ _ 3"]]) -> Features:
        """The frozen vision tower's features, before the projector."""
        if self.family.varies:
            return [self.family.features(self.model, one[None])[0] for one in pixels]
        return self.family.features(self.model, pixels if isinstance(pixels, mx.array) else mx.stack(list(pixels)))

    def image_features(self, images: Sequence[Picture]) -> Features:
        """Cached features of clean images.

        The vision tower encodes one image at a time: in a batch the last bits depend on the other rows, and an image must
        have the same features before and after a restart.
        """
        found = [self.family.patches(self.model, self.image_states(image)) for image in images]
        return [one.astype(mx.float32) for one in found] if self.family.varies else mx.stack(found).astype(mx.float32)

    def image_states(self, image: Picture) -> Float[mx.array, "... d"]:
        """Cached vision tower states, class token included, in float16.

        `image_features` is selected from them, and a CLIP with the same tower continues from them.
        """
        key = image_digest(image)  # tower and preprocessing are not in the key: the cache belongs to this policy
        states = self.cache.get(key)
        if states is None:
            states = self.family.states(self.model, self.pixels(image)[None])[0].astype(mx.float16)
            mx.eval(states)
            self.cache.put(key, states)
        return states

    # -- reading ------------------------------------------------------------------------------------------------------

    def prefill(self, features: Features, prompts: list[list[int]]) -> Prefix:
        """Read prompts with their images into a prefix cache.

        `features` are in reading order, one per block of image tokens.
        """
        images = self.family.embeds(self.model, features)
        if self.family.varies:
            prompts = fitted(prompts, self.image_token, images)
        ids, mask = right_pad(prompts)
        embeds = merge(self.decoder.embed(ids), ids, self.image_token, images)
        positions = self.family.positions(self.model, ids, mask, features)
        return prefill(self.decoder, embeds, mask, self.checkpoint, positions)

    def read(self, prefix: Prefix, responses: list[list[list[int]]]) -> Reading:
        """Token log-probabilities of k answers to each prompt.

        Rows of the same prompt are adjacent. Differentiable.
        """
        copies = len(responses[0])
        if any(len(row) != copies for row in responses):
            raise ValueError("every prompt needs the same number of responses")
        ids, mask = right_pad([ids for row in responses for ids in row])
        branches = prefix.branch(copies)
        decoder = self.decoder
        states, _ = extend(decoder, branches, ids, mask, self.checkpoint)
        # The prefix's last state predicts the first token. The id before it is a placeholder, which is never scored.
        states = mx.concatenate([branches.state[:, None], states], axis=1)
        ids = mx.concatenate([mx.zeros_like(ids[:, :1]), ids], axis=1)
        return Reading(token_logps(states, ids, decoder.head), mx.array(mask), states)

    def score(self, prefix: Prefix, responses: list[list[list[int]]]) -> Float[mx.array, "b k"]:
        """Summed log-probabilities of k answers to each prompt.

        logp(y) = sum over t of log p(y_t | image, prompt, y_<t), end token included. Differentiable.
        """
        reading = self.read(prefix, responses)
        return sum_logps(reading.logps, reading.mask).reshape(-1, len(responses[0]))

    def first_logits(self, question: str, image: Picture | None = None) -> Float[mx.array, "1 v"]:
        """Logits of an answer's first token, in float32.

        Without an image, the prompt is read without its image tokens.
        """
        ids, decoder = self.prompt_ids(question), self.decoder
        if image is not None:
            prefix = self.prefill(self.features(self.pixels(image)[None]), [ids])
        else:
            text, mask = right_pad([[token for token in ids if token != self.image_token]])
            prefix = prefill(decoder, decoder.embed(text), mask, positions=self.family.positions(self.model, text, mask, []))
        return decoder.head(prefix.state).astype(mx.float32)

    # -- answering ----------------------------------------------------------------------------------------------------

    def generate(self, prefix: Prefix, sampling: Sampling, keys: list[mx.array] | None = None, copies: int = 1) -> list[Answer]:
        """Sample `copies` answers to each of b prompts.

        Answers to the same prompt are adjacent. `keys`: one random key per answer, required unless greedy.
        """
        branches = prefix.branch(copies)
        return self._answers(branches, branches.state, sampling, keys)

    def ask(self, prefix: Prefix, questions: list[list[int]], sampling: Sampling) -> list[Answer]:
        """Answer several questions about each image, read once.

        POPE asks many questions per image. `prefix` has b images with the text before them; `questions` are the ids after
        them, k per image, with those of the same image adjacent.
        """
        ids, mask = right_pad(questions)
        states, branches = extend(self.decoder, prefix.branch(len(questions) // len(prefix.mask)), ids, mask)
        last = states[mx.arange(len(mask)), mx.array(mask.sum(axis=1) - 1)]
        return self._answers(branches, last, sampling, None)

    def _answers(
        self, branches: Continuations, state: mx.array, sampling: Sampling, keys: list[mx.array] | None
    ) -> list[Answer]:
        rows = sample(self.decoder, branches, state, self.end, sampling, keys)
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [Answer(text.strip(), ids, ids[-1] == self.end) for ids, text in zip(rows, texts, strict=True)]

    def answer(self, image: Picture, question: str, sampling: Sampling | None = None, seed: int = 0, **limits: Any) -> str:
        """Answer one question about one image, greedy by default.

        The image is a path, a file's bytes, a Pillow image or an array (see `open_image`), with the same answer for all.
        Another template's turn markers around the question are removed, with a message, since the model's own are added.
        `limits`: max_tokens, temperature and top_p, as in `Sampling`; or pass `sampling`. Raises `UserError` for values that
        are unknown, of the wrong type or out of range.
        """
        if not isinstance(question, str):
            raise UserError(f"The question must be text, got {shown(question)}.")
        if not isinstance(sampling, Sampling | None) or (sampling is not None and limits):
            raise UserError("Give either max_tokens=, temperature= and top_p=, or one Sampling.")
        sampling = sampling or build(Sampling, limits, "answer")
        prefix = self.prefill(self.features(self.pixels(image)[None]), [self.prompt_ids(asked(question))])
        return self.generate(prefix, sampling, [key_for(seed, "answer")])[0].text

    def logps(self, images: Sequence[Picture], questions: Sequence[str], answers: Sequence[str]) -> Float[mx.array, " n"]:
        """Summed log-probabilities of answers to questions about images.

        logp(y) = sum over t of log p(y_t | image, question, y_<t), in nats, at most 0, end token included; one per row.
        Differentiable in the trained adapter. Raises `UserError` if the three differ in length or are empty.
        """
        counts = [len(images), len(questions), len(answers)]
        if len(set(counts)) > 1 or not answers:
            raise UserError(f"Give as many images as questions and answers, got {counts[0]}, {counts[1]} and {counts[2]}.")
        prefix = self.prefill(self.image_features(images), [self.prompt_ids(asked(question)) for question in questions])
        return self.score(prefix, [[self.response_ids(answer)] for answer in answers])[:, 0]

    # -- learning -----------------------------------------------------------------------------------------------------

    def attach(self, settings: LoRASettings, seed: int) -> None:
        """Freeze the model and add one trainable round of LoRA."""
        attach(self.model, settings, mx.random.key(seed))

    def adapter_off(self) -> AbstractContextManager[None]:
        """Context in which the adapter is off: the base model."""
        return adapter_at(self.model, 0)

    def save_adapter(self, folder: Path, **about: Any) -> None:
        """Write the adapter for this package and mlx-vlm."""
        save_adapter(self.model, folder, {**about, **self.identity, "source_fingerprint": self.source})

    def load_adapter(self, path: str | Path) -> int:
        """Load a saved adapter; return its number of layers.

        All its rounds are frozen, and a message says how much it changes the logits. `path` may be a name on the hub,
        owner/name. Raises `UserError` unless every tensor matches a layer, and template, aspect and base are those that the
        adapter was trained with.
        """
        folder = find_model(_named(path, "an adapter"))
        config, layers = read_adapter(folder)
        check_base(folder, config, self.identity, lambda: self.source)
        before = self.first_logits(PROBE)
        mx.eval(before)  # now, before the adapter is bound
        linears = bind(self.model, folder, layers, whole=is_whole(config))
        tensors = 2 * len(layers)
        say(f"{folder}: {tensors} of {tensors} tensors bound, to {len(layers)} of {linears} linear layers.")
        change = cast(float, mx.abs(self.first_logits(PROBE) - before).max().item())
        if not math.isfinite(change):
            scale = config["lora_parameters"].get("scale")
            raise UserError(f"{folder}: with this adapter the model's logits are not finite. Its scale is {scale}.")
        if change:
            say(f"{folder}: the adapter changes logits by up to {change:.2g} (on a fixed prompt).")
        else:
            say(f"Warning: the adapter in {folder} changes no logit (by {change} on a fixed prompt). Was it trained?")
        return len(layers)


def split_prompt(policy: Policy, question: str) -> tuple[list[int], list[int]]:
    """A prompt's ids up to the image's end, and after.

    The first part is the same for all questions.
    """
    ids = policy.prompt_ids(question)
    after = len(ids) - ids[::-1].index(policy.image_token)
    return ids[:after], ids[after:]


def _named(path: str | Path, what: str) -> str | Path:
    """`path` if it is a path or text. Raises UserError for anything else."""
    if not isinstance(path, str | Path):
        raise UserError(f"Give {what} as a folder's path or a name on the hub, got {shown(path)}.")
    return path


def find_folder(model: str | Path) -> Path:
    """The folder of a model.

    `model`: its path, its name on the hub, or "tiny". Raises UserError if there is none.
    """
    folder = TINY if str(_named(model, "a model")) == "tiny" else find_model(model)
    if not folder.is_dir():
        fault = "a file, not a folder" if folder.exists() else "neither a local folder nor a name on the hub (owner/name)"
        raise UserError(f"The model {model} is {fault}.")
    return folder


def load(
    model: str | Path = "tiny",
    adapter_path: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    template: templates.Template | None = None,
    aspect: Aspect | None = None,
    dtype: mx.Dtype | None = None,
    cache_gb: float = 1.0,
) -> Policy:
    """Load a model, and optionally an adapter on top.

    `model` is a folder, or "tiny" for the embedded LLaVA-1.5. Model and adapter may be names on the hub, owner/name, of
    folders as `visalign convert` and `visalign upload` write them.
    `template` and `aspect` default to the folder's (`"visalign"` in config.json), then to `pad` and to the template that the
    model's family was trained with. Raises `UserError` if the folder's chat template has another format, and for models of no
    known family (see `models/families`) and aspects that the family was not trained with.
    `dtype` casts the weights (None keeps them; "tiny" runs in float32). `adapter` is an alias of `adapter_path`.
    """
    folder = find_folder(model)
    if dtype is not None and not isinstance(dtype, mx.Dtype):
        raise UserError(f"dtype must be one of MLX's, such as mx.float16, got {shown(dtype)}.")
    if adapter is not None and adapter_path is not None:
        raise UserError("Give one adapter: adapter= is an alias of adapter_path=.")
    adapter = adapter_path if adapter is None else adapter
    config = read_json(folder / "config.json")
    ours: dict[str, Any] = stated(folder)
    require_whole(folder, config)
    family = families.find(config.get("model_type"))
    aspect = cast(Aspect, aspect or ours.get("aspect", "pad"))
    _check_choices(folder, template or ours.get("template"), aspect)
    family.check_aspect(aspect, folder)
    template = _template(folder, config, template, ours.get("template"))
    loaded = load_model(folder, config)
    dtype = dtype or (mx.float32 if folder == TINY else None)
    if dtype is not None:
        loaded.set_dtype(dtype)
    mx.eval(loaded.parameters())
    tokenizer = read_tokenizer(folder)
    preprocessing = Preprocessing.from_config(read_json(folder / "preprocessor_config.json"), aspect)
    find_source = partial(source_fingerprint, folder)
    stated_positions = config["text_config"].get("max_position_embeddings")
    positions = stated_positions if isinstance(stated_positions, int) and stated_positions > 0 else None
    policy = Policy(loaded, tokenizer, preprocessing, template, fingerprint(folder), cache_gb, find_source, positions)
    if adapter is not None:
        policy.load_adapter(adapter)
    return policy


def _template(folder: Path, config: dict[str, Any], asked: Any, stated: str | None) -> Any:
    """The requested template, else that of an earlier conversion, else the one that fits the folder's chat format."""
    if asked is None and stated is not None:
        return stated
    cure = "To use it anyway, run `visalign convert llava --template NAME`, or pass template=NAME to load()."
    choice = choose(folder, config, asked, cure=cure)
    for said in (f"the template is {choice.template} ({choice.note})" if choice.note else "", *remarks(folder, config)):
        if said:
            say(f"{folder}: {said}.")
    return choice.template


def _check_choices(folder: Path, template: Any, aspect: Any) -> None:
    for name, value, choices in (("template", template, templates.Template), ("aspect", aspect, Aspect)):
        if value is not None and value not in get_args(choices):
            raise UserError(f"{folder}: {name} must be one of {', '.join(get_args(choices))}, got {shown(value)}.")


def read_tokenizer(folder: Path) -> Any:
    """A folder's tokenizer, read by transformers.

    No Python from the folder is run, and no template is rendered.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):  # transformers would make one with an empty vocabulary
        raise UserError(f"{folder} has no tokenizer: expected one of {', '.join(TOKENIZER_FILES)} there.")
    for name in (*TOKENIZER_FILES, "merges.txt", TOKENIZER):
        refuse_pointer(folder / name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.decode(tokenizer("a word").input_ids)  # reveals some settings of the wrong type
        return tokenizer
    except Exception as error:  # the tokenizers library raises a bare Exception, others all kinds
        raise UserError(f"{folder} has no tokenizer that transformers can read ({plainly(error)}).") from None
