"""The sentence tree: the spec's streams, equality with full forwards token for token, and one prefix for all of it."""

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from random_llava import IMAGE, IMAGE_TOKENS, prompt, random_llava
from sentencepiece_like import llama_like_tokenizer

from mlx_visalign.inference import prefix_cache
from mlx_visalign.inference.policy import load
from mlx_visalign.methods.csr.sentence_tree import Growth, Node, Stops, diverse_step, grow
from mlx_visalign.models import families
from mlx_visalign.models.decoder import Decoder, decoder_of, merge
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import scene
from mlx_visalign.utils.arguments import DESCRIBE
from mlx_visalign.utils.errors import UserError

# The vocabulary and the logits after each token of the spec's example: 0 pad, 1 </s>, 2 ".", 3 A, 4 B, 5 C.
A, B, C, STOP = 3, 4, 5, 2
LOGITS = np.zeros((6, 6), dtype=np.float32)
LOGITS[A:] = [[-9, -9, 0, 1, 2, 1.5], [-9, -9, 1.2, 0.5, 0, 1], [-9, -9, 2, 0.3, 0.1, -1]]


def example(penalty):
    """Three streams of a "model" that knows only its last token."""
    table = mx.array(LOGITS)
    decoder = Decoder(lambda ids: mx.eye(6)[ids], [], lambda x: x, lambda x: x @ table)
    prefix = prefix_cache.Prefix([], np.ones((1, 1), dtype=bool), mx.eye(6)[mx.array([A])])
    [nodes] = grow(decoder, prefix, Stops(STOP, 1), Growth(3, penalty, 6), lambda level: [[]])
    return nodes


def test_the_specs_streams_with_a_large_penalty():
    nodes = example(3.0)
    assert [node.ids for node in nodes] == [(B, STOP), (C, STOP), (A, B, STOP)]
    np.testing.assert_allclose([np.mean(n.penalised) for n in nodes], [-0.854226, -0.785084, -1.151679], atol=1e-6)
    np.testing.assert_allclose([np.mean(n.logps) for n in nodes], [-0.854226, -0.785084, -1.151679], atol=1e-6)
    np.testing.assert_allclose([np.exp(np.sum(n.logps)) for n in nodes], [0.181146, 0.208010, 0.031586], atol=1e-6)


def test_the_specs_streams_with_a_small_penalty():
    nodes = example(0.5)
    assert [node.ids for node in nodes] == [(B, STOP), (B, STOP), (C, STOP)]
    np.testing.assert_allclose([np.mean(n.penalised) for n in nodes], [-0.854226, -1.104226, -0.785084], atol=1e-6)
    assert np.mean(nodes[1].logps) == pytest.approx(-0.854226, abs=1e-6)


def test_a_stream_that_stops_votes_for_its_runner_up():
    rows = np.array([[0, 0, 3, 2.5, 1, 0]] * 3, dtype=np.float32)
    assert [choice.token for choice in diverse_step(rows, 3.0, Stops(2, 1))] == [2, 2, 2]
    rows = np.array([[0, 0, 3, 2.5, 1, 0], [0, 0, 1, 2.5, 2, 0]], dtype=np.float32)
    assert [choice.token for choice in diverse_step(rows, 3.0, Stops(2, 1))] == [2, 4]  # 3 was the runner-up
    assert [choice.token for choice in diverse_step(rows, 0.0, Stops(2, 1))] == [2, 3]


def test_an_overlong_stretch_is_cut_and_goes_on_in_the_next_node():
    table = mx.array(np.where(np.arange(6) == A, 9.0, 0.0) * np.ones((6, 1)))
    decoder = Decoder(lambda ids: mx.eye(6)[ids], [], lambda x: x, lambda x: x @ table)
    prefix = prefix_cache.Prefix([], np.ones((1, 1), dtype=bool), mx.eye(6)[mx.array([A])])
    [nodes] = grow(
        decoder,
        prefix,
        Stops(STOP, 1),
        Growth(1, 0, 4, max_tokens=10),
        lambda level: [[node for node in level[0] if not node.final]],
    )
    assert [node.ids for node in nodes[:3]] == [(A,) * 4] * 3
    assert [node.final for node in nodes] == [False, False, True]
    assert nodes[2].path == nodes and len(nodes[2].answer) == 12


# -- against full forwards --------------------------------------------------------------------------------------------


def logps_after(model, feature, image_token, ids, image_at):
    """log p(next token) from one full forward of everything, through mlx-vlm's own causal forward."""
    whole = mx.array([ids])
    embed = model.language_model.model.embed_tokens
    start = merge(embed(whole[:, :image_at]), whole[:, :image_at], image_token, families.of(model).project(model, feature))
    embeds = mx.concatenate([start, embed(whole[:, image_at:])], axis=1)
    logits = model.language_model(whole, inputs_embeds=embeds, mask=None).logits[0, -1].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits))


def naive_children(model, feature, image_token, ids, parent, stops, growth):
    """The spec's streams, one full forward for every token of every stream, nothing kept."""
    streams = [[] for _ in range(growth.num_beam_groups)]
    done = [False] * growth.num_beam_groups
    for _ in range(growth.sentence_tokens):
        votes: dict[int, int] = {}
        for stream in range(growth.num_beam_groups):
            if done[stream]:
                continue
            scores = logps_after(model, feature, image_token, ids + parent + streams[stream], len(ids))
            for token, count in votes.items():
                scores[token] -= growth.diversity_penalty * count
            order = [int(token) for token in np.argsort(-scores)[:4]]
            streams[stream].append(order[0])
            done[stream] = order[0] in stops
            vote = next(token for token in order if token not in stops)
            votes[vote] = votes.get(vote, 0) + 1
    return [tuple(stream) for stream in streams]


def first_and_last(level):
    """Of every prompt's open sentences the likeliest and the least likely."""
    by_logp = [sorted((n for n in nodes if not n.final), key=lambda n: -np.mean(n.logps)) for nodes in level]
    return [nodes[:1] + nodes[1:][-1:] for nodes in by_logp]


def check_against_naive(model, features, image_token, prompts, stops, growth):
    decoder = decoder_of(model)
    ids, mask = prefix_cache.right_pad(prompts)
    prefix = prefix_cache.prefill(
        decoder, merge(decoder.embed(ids), ids, image_token, families.of(model).project(model, features)), mask
    )
    trees = grow(decoder, prefix, stops, growth, first_and_last)
    compared = 0
    for row, nodes in enumerate(trees):
        for parent in {node.parent: None for node in nodes}:
            found = [node.ids for node in nodes if node.parent is parent]
            feature = features[row : row + 1]
            assert found == naive_children(model, feature, image_token, prompts[row], parent.answer, stops, growth)
            compared += len(found)
    return trees, compared


@pytest.mark.parametrize(("seed", "penalty"), [(0, 3.0), (1, 0.5), (2, 0.0)])
def test_random_models_grow_what_full_forwards_grow(seed, penalty):
    """Stops are made likely, so that sentences end at different lengths and trees at different depths."""
    model = random_llava(seed)
    head = model.language_model.lm_head
    head.weight = mx.where((mx.arange(head.weight.shape[0]) % 8 == 5)[:, None], 1.6 * head.weight, head.weight)
    features = mx.random.normal((2, IMAGE_TOKENS, 64), key=mx.random.key(seed))
    prompts = [prompt([7, 8], [9, 10, 11]), prompt([12], [13])]
    trees, compared = check_against_naive(model, features, IMAGE, prompts, Stops(5, 13), Growth(3, penalty, 5, 11))
    assert compared > 15 and max(len(node.path) for nodes in trees for node in nodes) > 2
    assert len({len(node.ids) for nodes in trees for node in nodes}) > 1


def test_the_tiny_model_grows_what_full_forwards_grow():
    policy = load("tiny")
    pixels = mx.stack([policy.pixels(Image.fromarray(draw(scene(seed)))) for seed in (1_000_001, 1_000_007)])
    stops = Stops(policy.tokenizer.convert_tokens_to_ids("."), policy.end)
    prompts = [policy.prompt_ids(DESCRIBE)] * 2
    growth = Growth(3, 1.0, 14, max_tokens=30)
    trees, _ = check_against_naive(policy.model, policy.features(pixels), policy.image_token, prompts, stops, growth)
    texts = {policy.tokenizer.decode(node.ids) for nodes in trees for node in nodes}
    assert any(text.endswith("at the centre.") for text in texts)


def test_a_llama_like_tokenizers_pieces_make_sentences_that_join():
    """Bytes, ▁ and words of many pieces: a "model" that says one text token by token, and what the tree makes of it."""
    words = llama_like_tokenizer()
    text = "A giraffe is near. Two dogs🦒é"
    ids = [1, *words(text, add_special_tokens=False).input_ids, words.eos_token_id]
    assert len(set(ids)) == len(ids) and any(piece.startswith("<0x") for piece in words.convert_ids_to_tokens(ids))
    table = np.zeros((len(words), len(words)), dtype=np.float32)
    table[ids[:-1], ids[1:]] = 20.0
    decoder = Decoder(lambda ids: mx.eye(len(words))[ids], [], lambda x: x, lambda x: x @ mx.array(table))
    prefix = prefix_cache.Prefix([], np.ones((1, 1), dtype=bool), mx.eye(len(words))[mx.array([1])])
    stops = Stops(words.convert_tokens_to_ids("."), words.eos_token_id)
    [nodes] = grow(decoder, prefix, stops, Growth(1), first_and_last)
    assert nodes[-1].answer == ids[1:] and nodes[-1].final
    assert [words.decode(node.ids, skip_special_tokens=True) for node in nodes] == ["A giraffe is near.", "Two dogs🦒é"]
    assert words.decode(nodes[-1].answer, skip_special_tokens=True) == text


def test_no_second_prefill_and_each_sentence_once(monkeypatch):
    """Every token is read once, with one prefix; what was grown from is read no second time."""
    model = random_llava(1)
    decoder, read = decoder_of(model), []
    ids = mx.array([[1, 7, 8, 9]])
    prefix = prefix_cache.prefill(decoder, decoder.embed(ids), np.ones(ids.shape, dtype=bool))

    def counted(decoder, branches, ids, mask):
        assert branches.prefix is prefix
        read.append(int(mask.sum()))
        return prefix_cache.extend(decoder, branches, ids, mask)

    monkeypatch.setattr("mlx_visalign.methods.csr.sentence_tree.extend", counted)
    [nodes] = grow(decoder, prefix, Stops(5, 13), Growth(3, 1.0, 6, 20), first_and_last)
    grown_from = {node.parent for node in nodes if node.parent.parent is not None}
    assert sum(read) == sum(len(node.ids) - 1 for node in nodes) + len(grown_from)


def test_a_roots_path_is_empty():
    root = Node(0)
    child = Node(0, root, 1, (4, 2))
    assert root.path == [] and child.path == [child] and child.answer == [4, 2]


@pytest.mark.parametrize("bad", [{"num_beam_groups": 0}, {"diversity_penalty": -1.0}, {"sentence_tokens": 0}])
def test_bad_settings_are_refused(bad):
    [(name, value)] = bad.items()
    with pytest.raises(UserError, match=f"^{name} is {value}; it must be [^.]*\\.$"):
        Growth(**bad)
