"""CSR: pairs and filters; whole runs on the tiny model in rounds, stopped, resumed and continued, in every precision."""

import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from small_bases import bf16, four_bit
from stopping import StopError, stop_at

from mlx_visalign import methods
from mlx_visalign.convert.peft import to_peft
from mlx_visalign.data.images import open_image
from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.data.questions import make_prompts
from mlx_visalign.data.records import Pair, read_jsonl
from mlx_visalign.data.training_log import read_metrics
from mlx_visalign.inference.policy import TINY, load
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods import csr
from mlx_visalign.methods.csr.rewards import RewardSettings, Sentence, Tree
from mlx_visalign.methods.job import Job
from mlx_visalign.methods.judge import JudgeSettings, Sampled, make_judge
from mlx_visalign.methods.preference_rounds import PairMethod, collect, rounds_of, train_in_rounds
from mlx_visalign.models.adapter_files import read_adapter
from mlx_visalign.models.decoder import decoder_of
from mlx_visalign.models.lora import LoRASettings, adapter_at, adapters
from mlx_visalign.runs.run import Run
from mlx_visalign.tiny_world import language
from mlx_visalign.tiny_world.source import world_mix, world_photos
from mlx_visalign.training.dpo import PreferenceSettings
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.seeding import key_for
from mlx_visalign.utils.tolerances import PARITY, SAME_SUM

SETTINGS = csr.Settings(
    num_beam_groups=3,
    sentence_tokens=14,
    max_tokens=30,
    keep_worst=1,
    max_length_gap=None,  # few trees
    judge=JudgeSettings(samples=2, check_images=2, gate="warn"),
    batch=2,
    train=PreferenceSettings(batch_size=2, iters=3, learning_rate=2e-3, lora=LoRASettings(rank=4), save_every=1),
)
THREE = replace(SETTINGS, rounds=3)
LOGPS = {"chosen": -1.0, "rejected": -2.0}
WORLD = Vocabulary.from_rows(language.vocabulary(), "the tiny world")


def tree(id, best, worst, lengths=(10, 10)):
    sentences = tuple(
        Sentence(-1, i, text, (5, 2), -1.0, -1.0, "final", 20.0, r, r) for i, (text, r) in enumerate((best, worst))
    )
    return Tree(id, f"{id}.png", "Q?", 4, sentences, 0, 1, best[0], worst[0], lengths, (-1.0, -2.0))


def test_the_best_and_the_worst_make_a_pair():
    [pair] = csr.pairs([tree("a", ("A cat.", -0.2), ("A dog.", -0.8))], SETTINGS, 3)
    scores = {"chosen_score": -0.2, "rejected_score": -0.8}
    assert pair == Pair("a", ("a.png",), "Q?", "A cat.", "A dog.", **scores, reference_logps=LOGPS)


def test_equal_rewards_and_small_margins_make_none():
    trees = [tree("a", ("A cat.", -0.5), ("A dog.", -0.5)), tree("b", ("A cat.", -0.5), ("A dog.", -0.6))]
    assert [pair.id for pair in csr.pairs(trees, SETTINGS, 0)] == ["b"]
    assert not csr.pairs(trees, replace(SETTINGS, margin=0.2), 0)
    assert not csr.pairs([replace(trees[0], chosen=None, rejected=None)], SETTINGS, 0)


def test_an_answer_that_the_model_did_not_end_is_no_candidate(tmp_path):
    """Full trees and drawn answers alike: a pair gets an end token, which would teach to stop where the model did not."""
    short = job(tmp_path / "short")
    settings = replace(SETTINGS, sentence_tokens=5, max_tokens=5)
    pairs = collected(short, settings)
    trees = read_jsonl(short.run.folder / "trees.jsonl", Tree)
    assert not pairs and all(csr.is_cut(tree) and tree.chosen is None for tree in trees)
    assert f"{len(trees)} trees gave 0 pairs (every answer cut off: {len(trees)}, " in csr.summary(trees, pairs)
    short.run.close()
    whole = job(tmp_path / "whole")
    collected(whole, SETTINGS)
    end = whole.policy.end
    for found in read_jsonl(whole.run.folder / "trees.jsonl", Tree):
        assert all((s.fate == "final") == (s.ids[-1] == end) for s in found.sentences if s.fate != "broken")
        assert all(found.sentences[place].ids[-1] == end for place in (found.chosen, found.rejected) if place is not None)


def collected(one, settings):
    """The pairs of a job's first round."""
    method, one = PairMethod.of("csr", csr), csr.prepare(one, settings)
    return collect(method, one, settings, one.prompts, rounds_of(one, settings)[0])


def test_lengths_are_balanced_where_asked_for():
    trees = [tree(name, ("A cat.", 1.0), ("A dog.", 0.0), lengths) for name, lengths in (("a", (9, 9)), ("b", (9, 40)))]
    assert [pair.id for pair in csr.pairs(trees, replace(SETTINGS, max_length_gap=1.0), 0)] == ["a"]


def test_the_summary_of_trees():
    trees = [tree("a", ("A cat.", -0.5), ("A dog.", -0.9)), replace(tree("b", ("A", 0.0), ("B", 0.0)), chosen=None)]
    told = csr.summary(trees, csr.pairs(trees, SETTINGS, 0))
    assert told.startswith(
        "2 trees gave 1 pair (every answer cut off: 0, no two different complete answers: 1, left out for margin or balance: 0)"
    )
    assert told.endswith("100% (-0.50), 100% (-0.50).")


def job(folder, change=lambda policy: policy, images=3, **more):
    photos = world_photos(folder, "unlabelled", images, 0)
    return Job(Run(folder), change(load("tiny")), make_prompts(photos, world_mix(1), 5), seed=5, vocabulary=WORLD, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three undisturbed rounds."""
    one = job(tmp_path_factory.mktemp("whole"))
    methods.find("csr").train(one, THREE)
    csr.picture(one, THREE)
    one.run.close()
    return one


def after_rounds(whole, rounds, folder):
    """The whole run's folder as it was after so many rounds."""
    shutil.copytree(whole.run.folder, folder, dirs_exist_ok=True)
    for later in range(rounds + 1, 4):
        shutil.rmtree(folder / f"round-{later}")
        for file in folder.glob(f"*-{later}.*"):
            file.unlink()
    shutil.copytree(folder / f"round-{rounds}/adapter", folder / "adapter", dirs_exist_ok=True)


def weights(folder):
    return (folder / "adapter" / "adapters.safetensors").read_bytes()


def test_a_run_leaves_every_stage_and_a_picture(whole):
    folder = whole.run.folder
    rounds = ("trees.jsonl", "pairs.jsonl", "trees-2.jsonl", "pairs-2.jsonl", "rounds.json", "metrics.jsonl")
    for name in ("samples.jsonl", "judge.jsonl", "judge.json", *rounds):
        assert (folder / name).stat().st_size > 0
    assert {file.name for file in whole.run.plots.iterdir()} == {"csr.png", "csr.html", "csr_rounds.png"}
    assert len(read_jsonl(folder / "trees.jsonl", Tree)) == 3  # descriptions only
    assert [row["round"] for row in read_metrics(whole.run.metrics)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [row["iteration"] for row in read_metrics(whole.run.metrics)] == [*range(1, 10)]


def test_each_round_starts_at_ln_2(whole):
    rows = read_metrics(whole.run.metrics)
    assert [rows[i]["train_loss"] for i in (0, 3, 6)] == pytest.approx([np.log(2)] * 3, abs=1e-5)
    assert rows[5]["train_loss"] < rows[3]["train_loss"]


def test_a_rounds_pairs_and_reference_are_the_model_it_starts_from(whole):
    """Scored hot from the tree's prefix, and scored again alone with the adapter of the round before: the same."""
    policy = whole.policy
    for rounds, name in ((0, "pairs.jsonl"), (1, "pairs-2.jsonl")):
        pairs = read_jsonl(whole.run.folder / name, Pair)
        assert pairs and all(pair.round == rounds + 1 for pair in pairs)
        for pair in pairs:
            with adapter_at(policy.model, rounds):
                ids = [policy.prompt_ids(pair.prompt)]
                prefix = policy.prefill(policy.image_features([whole.run.folder / pair.images[0]]), ids)
                again = policy.score(prefix, [[policy.response_ids(text) for text in (pair.chosen, pair.rejected)]])
            np.testing.assert_allclose(again[0], [*pair.reference_logps.values()], atol=5 * SAME_SUM)


def test_a_later_rounds_judge_is_still_the_untrained_model(whole, tmp_path):
    """What it has sampled, what it samples now of other images, and what it makes of the second round's sentences."""
    fresh, late = job(tmp_path / "fresh", images=4), job(tmp_path / "late", images=4)
    late = replace(late, policy=whole.policy)
    *known, unseen = (prompt.image for prompt in SETTINGS.prompts_used(fresh.prompts))
    seen = [replace(one, prompts=[prompt for prompt in one.prompts if prompt.image != unseen]) for one in (fresh, late)]
    with fresh.run, late.run:
        ours, theirs = (make_judge(one, SETTINGS) for one in seen)
        assert ours.checked == theirs.checked and ours.name == theirs.name
        names = [*dict.fromkeys(one.object for row in ours.checked for one in row.objects), "white cross"]
        scores = [judge.objects([one.image(unseen)] * len(names), names) for judge, one in ((ours, fresh), (theirs, late))]
        assert scores[0] == scores[1] and len(set(scores[0])) > 1
    rows = [read_jsonl(folder / "samples.jsonl", Sampled) for folder in (fresh.run.folder, whole.run.folder)]
    assert rows[0] == rows[1] and [row.image for row in rows[0]] == known
    for tree in read_jsonl(whole.run.folder / "trees-2.jsonl", Tree):
        told = [s for s in tree.sentences if s.image is not None]
        again = ours.sentences([fresh.image(tree.image)] * len(told), [s.text for s in told])
        assert told and [s.image for s in told] == pytest.approx(again, abs=1e-4)
    asked = SETTINGS.prompts_used(seen[0].prompts)
    keys = [key_for(fresh.seed, prompt.id, "consistency", number) for prompt in asked for number in range(2)]
    trained = whole.policy.generate(fresh.prefill(asked), Sampling(SETTINGS.max_tokens, 1.0), keys, 2)
    assert [answer.text for answer in trained] != [text for row in rows[0] for text in row.answers]  # it would differ


def test_a_tree_is_scored_as_its_settings_say(whole):
    for found in read_jsonl(whole.run.folder / "trees.jsonl", Tree):
        ends = [s for s in found.sentences if s.fate == "final" and s.total is not None]
        best, worst = (found.sentences[place] for place in (found.chosen, found.rejected))
        assert best.total == max(s.total for s in ends) and worst.total == min(s.total for s in ends)
        for end, text in ((found.chosen, found.chosen_text), (found.rejected, found.rejected_text)):
            path = [found.sentences[place] for place in found.path(end)]
            assert " ".join(s.text for s in path if s.text) == text
            assert sum(s.reward for s in path) == pytest.approx(path[-1].total)
            assert all((s.reward == 0) if s.image is None else -0.5 < s.reward < 0.5 for s in path)
        first = {s.text: s.reward for s in found.sentences if s.parent == -1 and s.image is not None}
        assert sum(first.values()) == pytest.approx(0)
        level = [place for place in range(len(found.sentences)) if len(found.path(place)) == 1]
        assert sum(found.sentences[place].fate == "grown" for place in level) <= 2


def test_a_run_stopped_in_its_second_round_ends_with_the_same_adapter(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mlx_visalign.training.pair_filters.FEW", 2)  # more than all of the images
    after_rounds(whole, 1, tmp_path)
    first = job(tmp_path, on_metrics=stop_at(2))
    with pytest.raises(StopError):
        methods.find("csr").train(first, replace(SETTINGS, rounds=2))
    assert capsys.readouterr().err.count("of 3 images gave a pair") == 2
    first.run.close()
    methods.find("csr").train(job(tmp_path), replace(SETTINGS, rounds=2))
    assert weights(tmp_path) == weights(whole.run.folder / "round-2")


def test_a_finished_run_goes_on_with_one_more_round(whole, tmp_path):
    after_rounds(whole, 2, tmp_path)
    assert read_adapter(tmp_path / "adapter")[0]["round_ranks"] == [4, 4]
    methods.find("csr").train(job(tmp_path), THREE)
    assert weights(tmp_path) == weights(whole.run.folder)


def asked(whole):
    """An image and a prompt, and our logits of the first token of the answer."""
    policy, prompt = whole.policy, whole.prompts[0]
    pixels, ids = policy.pixels(open_image(whole.image(prompt.image)))[None], policy.prompt_ids(prompt.prompt)
    logits = decoder_of(policy.model).head(policy.prefill(policy.features(pixels), [ids]).state)[0]
    return pixels.transpose(0, 3, 1, 2), [ids], np.array(logits)


def test_later_rounds_take_fewer_passes(whole, tmp_path):
    pairs = [whole.located(pair) for pair in read_jsonl(whole.run.folder / "pairs.jsonl", Pair)]
    training = replace(SETTINGS.train, iters=None, epochs=4.0, batch_size=1)
    settings = replace(SETTINGS, rounds=2, later_epochs=2.0, train=training)
    train_in_rounds(job(tmp_path), settings, lambda one: pairs, "csr")
    updates = [len(read_metrics(tmp_path / f"round-{number}/metrics.jsonl")) for number in (1, 2)]
    assert updates == [4 * len(pairs), 2 * len(pairs)] and pairs
    assert replace(SETTINGS, rounds=3, train=training).prompts_trained(10) == 40 + 10 + 10
    assert THREE.prompts_trained(10) == 3 * 3 * 2  # `iters` are those of every round


def test_three_rounds_are_one_adapter_that_mlx_vlm_loads(whole):
    import mlx_vlm

    config, _ = read_adapter(whole.run.adapter)
    assert config["round_ranks"] == [4, 4, 4] and config["lora_parameters"]["rank"] == 12 and config["round"] == 3
    theirs, _ = mlx_vlm.load(str(TINY), adapter_path=str(whole.run.adapter))
    theirs.set_dtype(mx.float32)
    pixels, ids, logits = asked(whole)
    np.testing.assert_allclose(logits, theirs(mx.array(ids), pixels, mask=None).logits[0, -1], atol=5 * PARITY)
    assert len(adapters(whole.policy.model)) == 3 * 7


@pytest.mark.reference
def test_peft_loads_the_three_rounds(whole, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    to_peft(whole.run.adapter, tmp_path / "peft")
    base = LlavaForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    pixels, ids, logits = asked(whole)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids), pixel_values=torch.tensor(np.array(pixels))).logits[0, -1]
        with theirs.disable_adapter():
            base_logits = theirs(input_ids=torch.tensor(ids), pixel_values=torch.tensor(np.array(pixels))).logits[0, -1]
    np.testing.assert_allclose(logits, expected, atol=5 * PARITY)
    assert np.abs(logits - base_logits.numpy()).max() > 1e-2


def test_a_clip_that_cannot_be_read_is_said_before_answers_are_sampled(whole, tmp_path):
    with Run(tmp_path / "run") as run, pytest.raises(UserError, match=r"nowhere"):
        make_judge(replace(whole, run=run), replace(SETTINGS, clip=str(tmp_path / "nowhere")))
    assert not [*tmp_path.rglob("*.jsonl")]


def test_other_rewards_in_the_same_folder_are_refused(whole):
    again = replace(whole, run=Run(whole.run.folder), policy=load("tiny"))
    with pytest.raises(UserError, match="reward"):
        methods.find("csr").train(again, replace(SETTINGS, reward=RewardSettings(image_weight=0.5)))


def test_a_users_own_function_scores(tmp_path):
    """One that likes large things."""
    one = job(tmp_path, score=lambda images, texts: [100.0 * ("large" in text) for text in texts], score_name="mine:large")
    judge = replace(SETTINGS.judge, kind="clip")
    methods.find("csr").train(one, replace(SETTINGS, judge=judge, reward=RewardSettings("paper", 1.0)))
    scores = [s.image for t in read_jsonl(tmp_path / "trees.jsonl", Tree) for s in t.sentences if s.text]
    assert set(scores) <= {0.0, 100.0, None} and 100.0 in scores


def test_complete_answers_are_scored_too(tmp_path):
    one, reward = job(tmp_path), RewardSettings("calibrated", repeat_penalty=1.0)
    settings = replace(SETTINGS, form="response", samples=3, max_tokens=64, reward=reward)
    methods.find("csr").train(one, settings)
    for found in read_jsonl(tmp_path / "trees.jsonl", Tree):
        roots = [s for s in found.sentences if s.parent == -1]
        assert sorted(s.stream for s in roots) == [0, 1, 2]
        assert all(s.image is not None or s.text == "" for s in found.sentences)
        named: set[str] = set()
        for place in found.path(found.chosen):
            sentence = found.sentences[place]
            objects = {mention.canonical for mention in WORLD.mentions(sentence.text)}
            if objects and objects <= named:
                assert sentence.reward < 0.0
            named |= objects


def test_complete_answers_are_ranked_by_calibrated_rewards(tmp_path):
    """Ranks among siblings cannot compare them; what repeats objects loses 1."""
    one = job(tmp_path)
    [prompt, *_] = SETTINGS.prompts_used(one.prompts)
    policy = one.policy
    [answer] = policy.generate(one.prefill([prompt]), Sampling(64))
    first = answer.text.split(". ")[0] + "."
    texts = [answer.text, f"{answer.text} {first}", first]
    answers = [replace(answer, text=text, ids=policy.response_ids(text)) for text in texts]
    with one.run:
        judge = make_judge(one, SETTINGS)
        threshold, width = judge.spread
        spelt_out = RewardSettings("calibrated", over="sum", threshold=threshold, width=width, repeat_penalty=1.0)
        worth = {}
        for name, reward in (
            ("centred", RewardSettings()),
            ("rank", RewardSettings("rank", over="mean")),
            ("spelt out", spelt_out),
            ("without a penalty", replace(spelt_out, repeat_penalty=0.0)),
        ):
            settings = replace(SETTINGS, reward=reward)
            [worth[name]] = csr.ranking(one, settings)([prompt], one.prefill([prompt]), [answers])
    assert worth["centred"] == worth["rank"] == worth["spelt out"]
    own, more, none = np.subtract(worth["without a penalty"], worth["centred"])  # the model may repeat objects by itself
    assert (more - own, none) == pytest.approx((1, 0)) and worth["centred"][1] < worth["centred"][0]


@pytest.mark.parametrize(("change", "dtype"), [(bf16, "bfloat16"), (four_bit, "4-bit")])
def test_a_short_run_on_a_small_base(tmp_path, change, dtype):
    one = job(tmp_path, change, images=2)
    assert one.policy.dtype == dtype
    methods.find("csr").train(one, replace(SETTINGS, rounds=2))
    rows = read_metrics(one.run.metrics)
    assert [rows[i]["train_loss"] for i in (0, 3)] == pytest.approx([np.log(2)] * 2, abs=0.02)
    adapter = mx.load(str(one.run.adapter / "adapters.safetensors"))
    assert all(array.dtype == mx.float32 for array in adapter.values())
    assert any(mx.abs(array[4:]).max() > 0 for name, array in adapter.items() if name.endswith("lora_b"))


def test_a_dry_run_without_a_model(whole):
    work = THREE.workload(whole.prompts)
    stages = [(3, 3 * 2 * 30), (2, 2 * 30), (9, 9 * 6 * 43)]  # the judge's samples and its check are made once
    assert (work.rounds, [(stage.total, stage.sampled) for stage in work.stages]) == (3, stages)
    assert work.stages[0].streams == 2 and work.scorer == (None, "pad")
    for kind, sampled, scorer in (("clip", 2, (None, "pad")), ("consistency", 3, None), ("self_check", 2, None)):
        work = replace(THREE, judge=replace(SETTINGS.judge, kind=kind)).workload(whole.prompts)
        assert [(stage.total, stage.sampled) for stage in work.stages] == [(sampled, sampled * 2 * 30), *stages[1:]]
        assert work.scorer == scorer


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"margin": -1.0}, {"samples": 1}, {"form": "response"}, {"num_beam_groups": 0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(UserError):
        csr.Settings(**bad)
