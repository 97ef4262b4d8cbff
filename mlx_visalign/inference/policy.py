"""The model as one thing: it answers, it scores answers, and it can learn (through a LoRA adapter)."""

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

from mlx_visalign.convert.fingerprint import source_fingerprint
from mlx_visalign.data import prompt_template as templates
from mlx_visalign.data.images import Aspect, Picture, Preprocessing, image_digest, open_image
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
from mlx_visalign.models.model_folder import TOKENIZER, WORDS, remarks, require_whole
from mlx_visalign.utils.arguments import DESCRIBE
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError, plainly
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.lfs_pointers import refuse_pointer
from mlx_visalign.utils.schema import build, shown
from mlx_visalign.utils.seeding import key_for

TINY = Path(__file__).parents[1] / "tiny_world" / "tiny" / "llava"
PROBE = DESCRIBE  # a fixed question for comparing logits


@dataclass(frozen=True)
class Answer:
    """text: without special tokens. ids: every token, the end token too. finished: false where max_tokens cut it off."""

    text: str
    ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Reading:
    """n right-padded answers as the model reads them.

    logps   log p(token | image, prompt, tokens before it), in float32
    mask    true where a token is real
    states  the final hidden state before each token, and after the last one
    """

    logps: Float[mx.array, "n l"]
    mask: Bool[mx.array, "n l"]
    states: Float[mx.array, "n l+1 e"]


class FeatureCache:
    """The frozen tower's features of clean images, in float16, least recently used out first.

    Every reader gets the float16 values, the first one too, so a run does not change with the cache's size or a restart.
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
    """A LLaVA with its tokenizer, template and preprocessing. `model` is mlx-vlm's; everything else goes through here."""

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
        """`base` is the fingerprint of the weights, `source` finds that of the weights they were converted from. `positions`:
        how many tokens the language model was made for, where its config says so.
        """
        self.model, self.tokenizer, self.preprocessing, self.template = model, tokenizer, preprocessing, template
        self.base, self._find_source = base, source
        self.positions = positions
        self.image_token = model.config.image_token_index
        self.family = families.of(model)
        self.image_tokens = self.family.image_tokens(model)
        self.end = tokenizer.eos_token_id
        self.checkpoint = False  # recompute layers in the backward pass: less memory, half again the time
        self.cache = FeatureCache(cache_gb)

    @property
    def dtype(self) -> str:
        """What the weights are, for the record: "float32", "bfloat16", or "4-bit" and the like."""
        decoder = self.decoder
        return f"{decoder.embed.bits}-bit" if hasattr(decoder.embed, "bits") else str(decoder.norm.weight.dtype).split(".")[-1]

    @property
    def decoder(self) -> Decoder:
        """The language model in its parts."""
        return self.family.decoder(self.model)

    @cached_property
    def source(self) -> str:
        """The fingerprint of the weights that these were converted from: the same in every precision."""
        return self.base if self._find_source is None else self._find_source()

    @property
    def identity(self) -> dict[str, str]:
        """What an adapter for this model depends on."""
        return {"template": self.template, "aspect": self.preprocessing.aspect, "base_fingerprint": self.base}

    # -- words and pixels ---------------------------------------------------------------------------------------------

    def prompt_ids(self, question: str, image_tokens: int | None = None) -> list[int]:
        """The whole prompt's token ids, image tokens included: so many, or else the most that an image takes.

        `prefill` makes them as many as the image has that it reads them with.
        """
        return templates.prompt_ids(self.tokenizer, self.template, question, image_tokens or self.image_tokens)

    def image_tokens_of(self, image: Picture) -> int:
        """How many places an image takes. It is opened only where that depends on its size."""
        if not self.family.varies:
            return self.image_tokens
        opened = open_image(image)
        return self.family.image_tokens_of(self.model, opened.height, opened.width)

    def response_ids(self, text: str) -> list[int]:
        """An answer's token ids, end token included."""
        return templates.response_ids(self.tokenizer, text)

    def pixels(self, image: Picture) -> Float[mx.array, "h w 3"]:
        """The image as the tower wants it: opened (see `open_image`), padded or cropped, resized, normalised."""
        return self.family.pixels(self.preprocessing, image)

    def features(self, pixels: Float[mx.array, "b h w 3"] | Sequence[Float[mx.array, "_ _ 3"]]) -> Features:
        """The frozen tower's features of images, before the projector."""
        if self.family.varies:
            return [self.family.features(self.model, one[None])[0] for one in pixels]
        return self.family.features(self.model, pixels if isinstance(pixels, mx.array) else mx.stack(list(pixels)))

    def image_features(self, images: Sequence[Picture]) -> Features:
        """The features of clean images, through the cache.

        The tower sees one image at a time: in a batch the last bits depend on its other rows, and an image must give the
        same features before and after a restart.
        """
        found = [self.family.patches(self.model, self.image_states(image)) for image in images]
        return [one.astype(mx.float32) for one in found] if self.family.varies else mx.stack(found).astype(mx.float32)

    def image_states(self, image: Picture) -> Float[mx.array, "... d"]:
        """The states behind `image_features`, in float16, the class token too: a CLIP of the same tower goes on from here."""
        key = image_digest(image)  # which tower and preprocessing saw it need not be said: the cache is this policy's
        states = self.cache.get(key)
        if states is None:
            states = self.family.states(self.model, self.pixels(image)[None])[0].astype(mx.float16)
            mx.eval(states)
            self.cache.put(key, states)
        return states

    # -- reading ------------------------------------------------------------------------------------------------------

    def prefill(self, features: Features, prompts: list[list[int]]) -> Prefix:
        """Read prompts with their images: `features` in reading order, one for every block of image tokens."""
        images = self.family.embeds(self.model, features)
        if self.family.varies:
            prompts = fitted(prompts, self.image_token, images)
        ids, mask = right_pad(prompts)
        embeds = merge(self.decoder.embed(ids), ids, self.image_token, images)
        positions = self.family.positions(self.model, ids, mask, features)
        return prefill(self.decoder, embeds, mask, self.checkpoint, positions)

    def read(self, prefix: Prefix, responses: list[list[list[int]]]) -> Reading:
        """k answers to each of b prompts, token by token; rows of one prompt next to each other. Differentiable."""
        copies = len(responses[0])
        if any(len(row) != copies for row in responses):
            raise ValueError("every prompt needs the same number of responses")
        ids, mask = right_pad([ids for row in responses for ids in row])
        branches = prefix.branch(copies)
        decoder = self.decoder
        states, _ = extend(decoder, branches, ids, mask, self.checkpoint)
        # The prefix's last state predicts the first token; the token before it is the prompt's and counts for nothing.
        states = mx.concatenate([branches.state[:, None], states], axis=1)
        ids = mx.concatenate([mx.zeros_like(ids[:, :1]), ids], axis=1)
        return Reading(token_logps(states, ids, decoder.head), mx.array(mask), states)

    def score(self, prefix: Prefix, responses: list[list[list[int]]]) -> Float[mx.array, "b k"]:
        """Summed log-probability of k answers to each of b prompts, end token included. Differentiable.

        logp(y) = sum over t of log p(y_t | image, prompt, y_<t)
        """
        reading = self.read(prefix, responses)
        return sum_logps(reading.logps, reading.mask).reshape(-1, len(responses[0]))

    def first_logits(self, question: str, image: Picture | None = None) -> Float[mx.array, "1 v"]:
        """What an answer's first token is chosen by, in float32. Without an image the words are read alone."""
        ids, decoder = self.prompt_ids(question), self.decoder
        if image is not None:
            prefix = self.prefill(self.features(self.pixels(image)[None]), [ids])
        else:
            words, mask = right_pad([[token for token in ids if token != self.image_token]])
            prefix = prefill(decoder, decoder.embed(words), mask, positions=self.family.positions(self.model, words, mask, []))
        return decoder.head(prefix.state).astype(mx.float32)

    # -- answering ----------------------------------------------------------------------------------------------------

    def generate(self, prefix: Prefix, sampling: Sampling, keys: list[mx.array] | None = None, copies: int = 1) -> list[Answer]:
        """Answer b prompts, `copies` times each, neighbours first. `keys`: one random key an answer, unless greedy."""
        branches = prefix.branch(copies)
        return self._answers(branches, branches.state, sampling, keys)

    def ask(self, prefix: Prefix, questions: list[list[int]], sampling: Sampling) -> list[Answer]:
        """Answer several questions about each image, reading the image once: POPE asks many of one.

        `prefix` holds b images with the words before them; `questions` the ids that come after, k of each image, those
        of one image next to each other.
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
        """One image, one question, one answer, greedy unless told otherwise.

        The image is a path, the bytes of a file, a Pillow image or an array (see `open_image`): the answer is the same.
        A template's marks around the question are taken off, and told: the model has its own. `limits`: max_tokens,
        temperature and top_p, as in `Sampling`, which may be given whole instead. Raises `UserError` where one is unknown,
        of the wrong type or out of its range.
        """
        if not isinstance(question, str):
            raise UserError(f"The question must be text, got {shown(question)}.")
        if not isinstance(sampling, Sampling | None) or (sampling is not None and limits):
            raise UserError("Say how to sample by max_tokens=, temperature= and top_p=, or by one Sampling and nothing else.")
        sampling = sampling or build(Sampling, limits, "answer")
        prefix = self.prefill(self.features(self.pixels(image)[None]), [self.prompt_ids(asked(question))])
        return self.generate(prefix, sampling, [key_for(seed, "answer")])[0].text

    def logps(self, images: Sequence[Picture], questions: Sequence[str], answers: Sequence[str]) -> Float[mx.array, " n"]:
        """Summed log-probabilities of answers to questions about images.

        logp(y) = sum over t of log p(y_t | image, question, y_<t), in nats, at most 0, the end token included; one for each
        row. Differentiable in an adapter that is trained. Raises `UserError` where the three are not equally many, or where
        there are none.
        """
        counts = [len(images), len(questions), len(answers)]
        if len(set(counts)) > 1 or not answers:
            raise UserError(f"Give as many images as questions and answers, got {counts[0]}, {counts[1]} and {counts[2]}.")
        prefix = self.prefill(self.image_features(images), [self.prompt_ids(asked(question)) for question in questions])
        return self.score(prefix, [[self.response_ids(answer)] for answer in answers])[:, 0]

    # -- learning -----------------------------------------------------------------------------------------------------

    def attach(self, settings: LoRASettings, seed: int) -> None:
        """Freeze everything and add one trainable round of LoRA to the language model."""
        attach(self.model, settings, mx.random.key(seed))

    def adapter_off(self) -> AbstractContextManager[None]:
        """The base model, within a `with` block."""
        return adapter_at(self.model, 0)

    def save_adapter(self, folder: Path, **about: Any) -> None:
        """Write the adapter so that this package and mlx-vlm load it."""
        save_adapter(self.model, folder, {**about, **self.identity, "source_fingerprint": self.source})

    def load_adapter(self, path: str | Path) -> int:
        """Add a saved adapter, all its rounds frozen, and say what it changes. Returns how many layers it is for.

        `path` may be a name on the hub, owner/name.
        Raises `UserError` unless every tensor finds its layer, and template, aspect and base are those it was trained with.
        """
        folder = find_model(_named(path, "an adapter"))
        config, layers = read_adapter(folder)
        check_base(folder, config, self.identity, lambda: self.source)
        before = self.first_logits(PROBE)
        mx.eval(before)  # now, while the model is as it was
        linears = bind(self.model, folder, layers, whole=is_whole(config))
        tensors = 2 * len(layers)
        say(f"{folder}: {tensors} of {tensors} tensors bound, to {len(layers)} of {linears} linear layers.")
        change = cast(float, mx.abs(self.first_logits(PROBE) - before).max().item())
        if not math.isfinite(change):
            scale = config["lora_parameters"].get("scale")
            raise UserError(f"{folder}: with this adapter the model's logits are no finite numbers. Its scale is {scale}.")
        if change:
            say(f"{folder}: the adapter changes logits by up to {change:.2g} (on a fixed prompt).")
        else:
            say(f"Warning: the adapter in {folder} changes no logit (by {change} on a fixed prompt): was it trained at all?")
        return len(layers)


def _named(path: str | Path, what: str) -> str | Path:
    """What names a folder. UserError for anything else."""
    if not isinstance(path, str | Path):
        raise UserError(f"Name {what} by its folder's path or its name on the hub, got {shown(path)}.")
    return path


def find_folder(model: str | Path) -> Path:
    """A model's folder, by its path, its name on the hub, or "tiny". UserError where there is none."""
    folder = TINY if str(_named(model, "a model")) == "tiny" else find_model(model)
    if not folder.is_dir():
        is_file = "is a file and no folder" if folder.exists() else "is no folder here, and no name on the hub (owner/name)"
        raise UserError(f"The model {model} {is_file}.")
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
    """Load a model's folder, or "tiny" for the embedded LLaVA-1.5, and an adapter on top.

    Both may be names on the hub, owner/name, of folders as `visalign convert` and `visalign upload` make them.
    `template` and `aspect` are read from the folder (`"visalign"` in config.json). Where it does not say them, `pad` is the
    default, and the template is the one that the model's family was trained with, unless the folder's chat template has other
    words, which is refused, as are models of no family (see `models/families`) and an aspect that the family never saw.
    `dtype` casts the weights (None keeps them; "tiny" runs in float32). `adapter` is another name of `adapter_path`.
    """
    folder = find_folder(model)
    if dtype is not None and not isinstance(dtype, mx.Dtype):
        raise UserError(f"dtype must be one of MLX's, such as mx.float16, got {shown(dtype)}.")
    if adapter is not None and adapter_path is not None:
        raise UserError("Name one adapter: adapter= is another name of adapter_path=.")
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
    """The one asked for or that a conversion has settled; else the one that the folder's own words fit."""
    if asked is None and stated is not None:
        return stated
    cure = "Convert it with `visalign convert llava --template NAME`, or give load(..., template=NAME), to take it anyway."
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
    """A folder's tokenizer as transformers reads it. No Python of the folder's is run, and no template rendered."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in WORDS):  # transformers would make one without a single word
        raise UserError(f"{folder} has no tokenizer: expected one of {', '.join(WORDS)} there.")
    for name in (*WORDS, "merges.txt", TOKENIZER):
        refuse_pointer(folder / name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.decode(tokenizer("a word").input_ids)  # some settings of the wrong type are not met before
        return tokenizer
    except Exception as error:  # the tokenizers library raises just that, and others what they come upon
        raise UserError(f"{folder} has no tokenizer that transformers can read ({plainly(error)}).") from None
