"""What every peer is given: a folder with a random LLaVA of 64 M parameters, a photo, and a pair of answers to it.

The model is in float32 and in the layout of llava-hf, which transformers, mlx-vlm and we read. Its words and its template
are the embedded tiny model's; the head has 32,000 words all the same.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parent))

from hf_layouts import WORDS_AND_PIXELS, write_hf
from meter import report
from random_llava import random_llava
from understudy import plain_words, question_of

from mlx_visalign.data.prompt_template import TEMPLATES
from mlx_visalign.inference.policy import TINY, load
from mlx_visalign.utils.files import read_json

RANK, SCALE, BETA, LEARNING_RATE = 8, 2.0, 0.1, 1e-5


@dataclass(frozen=True)
class Shape:
    """A model, and how long its pair is: tokens of the prompt with its image, and of both answers with their ends."""

    width: int = 512
    inner: int = 1376
    layers: int = 8
    heads: int = 8
    words: int = 32000
    tower: int = 256
    tower_layers: int = 6
    pixels: int = 336
    prompt: int = 640
    chosen: int = 150
    rejected: int = 100

    def config(self) -> dict:
        """Hugging Face's config.json of it. The rest of it is the tiny model's."""
        tiny = read_json(TINY / "config.json")
        text = {"hidden_size": self.width, "intermediate_size": self.inner, "num_hidden_layers": self.layers}
        text |= {"num_attention_heads": self.heads, "num_key_value_heads": self.heads, "vocab_size": self.words}
        vision = {"hidden_size": self.tower, "intermediate_size": 4 * self.tower, "num_hidden_layers": self.tower_layers}
        vision |= {"image_size": self.pixels, "patch_size": 14, "projection_dim": self.tower}
        parts = {"text_config": tiny["text_config"] | text, "vision_config": tiny["vision_config"] | vision}
        sizes = {"image_seq_length": (self.pixels // 14) ** 2, "torch_dtype": "float32"}
        return tiny | parts | sizes | {"max_position_embeddings": 2048}


@dataclass(frozen=True)
class Given:
    """The pair: `question` in our template, `prompt` as its whole text, and the ids of both, which must come out alike."""

    image: str
    question: str
    prompt: str
    answers: list[str]  # chosen, rejected
    prompt_ids: list[int]
    answer_ids: list[list[int]]


def make(folder: Path, shape: Shape) -> None:
    """Write the model, the photo and the pair. Another call writes the same."""
    config = shape.config()
    write_hf(folder, model=random_llava(config=config), config=config, dtype=np.float32)
    _write_words_and_pixels(folder, shape)
    pixels = np.random.default_rng(0).integers(0, 256, (shape.pixels, shape.pixels, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    policy = load(folder)
    words = np.random.default_rng(1).choice(plain_words(policy.tokenizer), (2, max(shape.chosen, shape.rejected)))
    lengths = (shape.chosen - 1, shape.rejected - 1)  # and the end token
    answers = [policy.tokenizer.decode(row[:length]) for row, length in zip(words, lengths, strict=True)]
    question = question_of(policy, shape.prompt)
    prompt = policy.tokenizer.bos_token + TEMPLATES[policy.template].replace("{question}", question)
    ids = [policy.response_ids(text) for text in answers]
    given = Given(str(folder / "photo.png"), question, prompt, answers, policy.prompt_ids(question), ids)
    if [len(given.prompt_ids), *map(len, ids)] != [shape.prompt, shape.chosen, shape.rejected]:
        raise ValueError(f"{len(given.prompt_ids)}, {[len(row) for row in ids]} tokens, expected {shape}")
    (folder / "pair.json").write_text(json.dumps(asdict(given)))


def _write_words_and_pixels(folder: Path, shape: Shape) -> None:
    """The tiny model's, with another image size and patch."""
    for name in WORDS_AND_PIXELS:
        content = (TINY / name).read_text()
        if name in ("preprocessor_config.json", "processor_config.json"):
            content = content.replace('": 48', f'": {shape.pixels}').replace('"patch_size": 8', '"patch_size": 14')
        (folder / name).write_text(content)


def given(folder: Path) -> Given:
    return Given(**json.loads((folder / "pair.json").read_text()))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Shape())
    report(())
