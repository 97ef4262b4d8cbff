"""The FLOP counter against hand formulas, and the understudy's notes against whole graphs.

In a process of its own: late in a long one, `mx.export_function` with a callback crashes MLX 0.32.4.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from flop_counter import Prices, count, count_gradient
from flops import grown_tree, hot_reference, mlx_vlm_step, pair_of, rolled_out, step_of
from random_llava import CONFIG
from understudy import Notes, question_of, understudy
from weightless import make_photos, policy_of

from mlx_visalign.models import families
from mlx_visalign.models.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from mlx_visalign.models.lora import LoRASettings, adapter_at
from mlx_visalign.training.dpo import PreferenceSettings, pair_logps, preference_loss

pytestmark = pytest.mark.alone

# A LLaVA with two blocks and prompts of 600 tokens, 576 of them the image's.
WIDTH, HIDDEN, LAYERS, WORDS, VISION, RANK, P, R = 32, 48, 2, 640, 16, 4, 600, 10
SMALL = CONFIG | {
    "text_config": CONFIG["text_config"]
    | {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_key_value_heads": 4, "vocab_size": WORDS},
    "vision_config": CONFIG["vision_config"] | {"hidden_size": VISION, "intermediate_size": 32, "image_size": 336},
}
KEYS_AND_VALUES = 2 * 2 * WIDTH**2  # FLOP a token in a block
LINEAR = KEYS_AND_VALUES + 2 * (2 * WIDTH**2 + 3 * WIDTH * HIDDEN)
LORA_KV = 2 * RANK * 2 * 2 * WIDTH  # x A and (x A) B
LORA = LORA_KV + 2 * RANK * (2 * 2 * WIDTH + 3 * (WIDTH + HIDDEN))
SHRUNK_KV, SHRUNK = 2 * RANK * 2 * WIDTH, 2 * RANK * (6 * WIDTH + HIDDEN)  # x A alone
PROJECTOR = 2 * 576 * (VISION * WIDTH + WIDTH**2)
HEAD = 2 * 2 * R * WIDTH * WORDS
# Scores of a prompt come in blocks of 128 queries, each with the keys up to its end.
PREFILL_ATTENTION = 4 * WIDTH * (128 * (128 + 256 + 384 + 512) + (P - 512) * P)
READ_ATTENTION, LAST_ATTENTION = 4 * WIDTH * 2 * R * (P + R), 4 * WIDTH * (P + 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"), 4)


@pytest.fixture
def policy(photos):
    return policy_of(SMALL, photos[:1])


def test_products_and_their_gradients():
    layer, x = nn.Linear(7, 5), mx.random.normal((2, 3, 7))
    assert count(lambda: layer(x)) == 2 * 6 * 7 * 5
    assert count(lambda: nn.value_and_grad(layer, lambda: layer(x).sum())()) == 2 * (2 * 6 * 7 * 5)
    assert count(lambda: mx.random.normal((4, 2, 3)) @ mx.random.normal((4, 3, 5))) == 2 * 4 * 2 * 3 * 5
    assert count(lambda: mx.conv2d(mx.random.normal((1, 28, 28, 3)), mx.random.normal((8, 14, 14, 3)), 14)) == 2 * 588 * 32
    q = mx.random.normal((2, 4, 6, 8))
    assert count(lambda: mx.fast.scaled_dot_product_attention(q, q + 1, q + 2, scale=1.0)) == 2 * 2 * (2 * 4 * 6 * 6 * 8)
    assert count(lambda: mx.softmax(mx.exp(x) + nn.RMSNorm(7)(x))) == 0


def test_what_is_not_known_is_refused():
    layer = nn.QuantizedLinear(64, 32)
    with pytest.raises(ValueError, match="QuantizedMatmul"):
        count(lambda: layer(mx.random.normal((1, 64))))


def test_what_is_computed_a_second_time_counts_twice():
    """The product is made anew for the sine's gradient; the last one, which no gradient asks for, is not."""

    def loss(x):
        return (mx.sin(x @ x) @ (x + 1)).sum()

    x = mx.random.normal((4, 4))
    assert count_gradient(lambda: mx.grad(mx.checkpoint(loss))(x)) == count(lambda: mx.grad(loss)(x)) + 2 * 4**3


def test_nothing_is_evaluated():
    layer, before = nn.Linear(4096, 4096), mx.get_active_memory()
    mx.reset_peak_memory()
    assert count(lambda: layer(mx.random.normal((100, 4096)))) == 2 * 100 * 4096**2
    assert mx.get_peak_memory() - before < 1e6  # the weights would be 67e6


def test_the_tower_is_what_its_shapes_say(policy):
    patches, tokens, blocks = 576 * 2 * 14 * 14 * 3 * VISION, 577, 2  # the third block is above the features
    block = 2 * tokens * (4 * VISION**2 + 2 * VISION * 32) + 4 * VISION * tokens**2
    assert (
        count(lambda: families.of(policy.model).states(policy.model, mx.random.normal((1, 336, 336, 3))))
        == patches + blocks * block
    )


def test_a_dpo_step_is_what_its_shapes_say(policy, photos):
    """The last block reads keys and values of the prompt, and its last token whole.

    Backward: once more for the activations of frozen weights, twice for the adapter's, twice for attention. A second time
    come attention's scores and what goes into every B, but for the prompt's last token, which is read alone.
    """
    batch = pair_of(policy, photos[0], P, R)
    whole = (LAYERS - 1) * (P + 2 * R) + 2 * R + 1  # times that a token goes through a whole block
    attention = (LAYERS - 1) * PREFILL_ATTENTION + LAST_ATTENTION + LAYERS * READ_ATTENTION
    forward = PROJECTOR + whole * LINEAR + P * KEYS_AND_VALUES + attention + HEAD
    assert count(lambda: pair_logps(policy, batch)) == forward
    assert count(lambda: hot_reference(policy, batch)) == LAYERS * (2 * R * LINEAR + READ_ATTENTION) + HEAD
    policy.attach(LoRASettings(RANK), seed=0)
    with adapter_at(policy.model, 0):
        assert count(lambda: pair_logps(policy, batch)) == forward
    lora = whole * LORA + P * LORA_KV
    assert count(lambda: pair_logps(policy, batch)) == forward + lora
    # No gradient goes into the embeddings, so q, k and v of the first block pass none on.
    first = (P + 2 * R) * 3 * (2 * WIDTH**2 + 2 * WIDTH * RANK)
    backward = whole * LINEAR + P * KEYS_AND_VALUES + 2 * attention + HEAD + 2 * lora - first
    again = (attention - LAST_ATTENTION) // 2 + (whole - 1) * SHRUNK + P * SHRUNK_KV
    step = count_gradient(lambda: step_of(policy.model, preference_loss(policy, PreferenceSettings()), batch))
    assert step == forward + lora + backward + again


def test_what_an_understudy_notes_costs_what_the_whole_graph_does(policy, photos):
    """Prompts and answers of different lengths, and an adapter that is on and off."""
    policy.attach(LoRASettings(RANK), seed=0)
    notes = Notes()
    small = understudy(notes, 5, ".")
    small.attach(LoRASettings(1), seed=0)
    questions = [question_of(small, P), question_of(small, P - 7)]
    for rounds in (0, 1):
        notes.calls.clear()
        graphs = 0
        for one in (small, policy):
            ids = [one.prompt_ids(question) for question in questions]
            responses = [[ids[0][:4], ids[0][:9]], [ids[0][:1], ids[0][:2]]]
            features = mx.random.normal((2, 576, one.model.config.vision_config.hidden_size))

            def read(one=one, ids=ids, responses=responses, features=features):
                return one.score(one.prefill(features, ids), responses)

            with adapter_at(one.model, rounds):
                if one is small:
                    mx.eval(read())
                else:
                    graphs = count(read)
        assert sum(Prices(policy.model, small_clip()).of(notes.calls).values()) == graphs > 0


def small_clip():
    return CLIP(CLIPConfig(TextConfig(16, 16, 1, 2), VisionConfig(16, 32, 1, 2, image_size=28, patch_size=14), 16))


def test_clips_price_is_what_its_shapes_say(policy):
    prices = Prices(policy.model, small_clip())
    text, image = 2 * (4 * 16**2 + 2 * 16 * 16), 2 * (4 * 16**2 + 2 * 16 * 32)
    assert prices.one(("clip_text", 3, 8)) == 3 * (8 * text + 4 * 16 * 8**2 + 2 * 16 * 16)
    assert prices.one(("clip_image", 1)) == 2 * 588 * 16 * 4 + 5 * image + 4 * 16 * 5**2 + 2 * 16 * 16


def test_a_tree_of_six_sentences_reads_its_image_once(photos):
    notes, tree = grown_tree(photos[0])
    assert (tree.tokens, len(tree.sentences), tree.depth) == (1600, 80, 6)
    assert tree.lengths == (120, 120)
    assert (notes.rows("tower"), notes.rows("clip_image"), notes.rows("projector")) == (1, 1, 1)
    reads = [(*sizes, times) for (part, *sizes), times in notes.calls.items() if part == "blocks"]
    assert [(rows, tokens) for rows, tokens, past, *_ in reads if past == 0] == [(1, 636)]
    # Every token but a sentence's last, and that one where its node has children; then the best and the worst answer.
    sampled = sum(rows * times for rows, tokens, past, _, times in reads if past and tokens == 1)
    assert sampled == 80 * 19 + 15
    assert [(rows, tokens, past) for rows, tokens, past, *_ in reads if past and tokens > 1] == [(2, 120, 636)]
    assert notes.rows("clip_text") >= 80  # those that fill up a batch count too


def test_a_rollout_reads_its_prompts_for_policy_and_reference(photos, tmp_path):
    notes = rolled_out(photos, tmp_path)
    assert notes.rows("tower") == 4
    prefills = {(rows, rounds): times for (part, rows, *rest, rounds), times in blocks(notes) if rest == [636, 0]}
    reads = {(rows, rounds): times for (part, rows, *rest, rounds), times in blocks(notes) if rest == [120, 636]}
    assert prefills == reads == {(4, 1): 1, (4, 0): 1}
    assert sum(times for (_, rows, tokens, _, _), times in blocks(notes) if tokens == 1) == 119


def blocks(notes):
    return [(call, times) for call, times in notes.calls.items() if call[0] == "blocks"]


def test_mlx_vlms_step_reads_four_whole_sequences(policy, photos, monkeypatch):
    """Its own loss on the small model: the head at every position, the tower in every forward, nothing shared."""
    batch = pair_of(policy, photos[0], P, R)
    monkeypatch.setattr("flops.LLAVA", SMALL)
    monkeypatch.setattr("flops.RANK", RANK)
    tokens = P + R - 1
    tower = count(lambda: families.of(policy.model).states(policy.model, mx.random.normal((1, 336, 336, 3))))
    one = tower + PROJECTOR + tokens * (LAYERS * LINEAR + 2 * WIDTH * WORDS) + 4 * WIDTH * LAYERS * tokens**2
    lora, first = LAYERS * LORA * tokens, tokens * 3 * (2 * WIDTH**2 + 2 * WIDTH * RANK)
    backward = tokens * (LAYERS * LINEAR + 2 * WIDTH * WORDS) + 8 * WIDTH * LAYERS * tokens**2 + 2 * lora - first
    assert count(lambda: mlx_vlm_step(batch)) == 4 * one + 2 * (lora + backward)


def test_answers_are_as_long_as_they_are_said_to_be(policy, photos):
    batch = pair_of(policy, photos[0], P, R)
    assert [len(ids) for ids in batch.prompts] == [P] and np.shape(batch.responses) == (1, 2, R)
