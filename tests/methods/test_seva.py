"""SeVa: pairs, filters and balance; a whole run on the tiny model, stopped and resumed, on float32, bf16 and 4-bit."""

from contextlib import suppress
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from small_bases import bf16, four_bit
from stopping import StopError, stop_at

from mlx_visalign import methods
from mlx_visalign.data.questions import make_prompts
from mlx_visalign.data.records import Pair, Response, read_jsonl
from mlx_visalign.data.training_log import read_metrics
from mlx_visalign.inference.policy import load
from mlx_visalign.methods import seva
from mlx_visalign.methods.job import Job
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.runs.run import Run
from mlx_visalign.tiny_world.source import world_mix, world_photos
from mlx_visalign.training.dpo import PreferenceSettings
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.tolerances import SAME_SUM

SETTINGS = seva.Settings(
    view="diffusion-600",
    exists_view="grayscale",
    max_length_gap=None,
    min_yes_margin=None,
    max_tokens=64,
    batch=3,
    train=PreferenceSettings(batch_size=2, iters=5, learning_rate=1e-3, lora=LoRASettings(rank=4), save_every=2),
)


def response(id, view, text, kind="describe", finished=True, logp=-1.0):
    return Response(id, f"{id}.png", "Q?", kind, view, text, finished, 3, logp)


def two(id, clean, distorted, kind="describe", **both):
    return [response(id, "clean", clean, kind, **both), response(id, "crop", distorted, kind, **both)]


def ids(pairs):
    return [pair.id for pair in pairs]


def test_different_finished_answers_make_a_pair():
    rows = two("a", "A cat.", "A dog.") + two("b", "Same.", "Same.") + two("c", "One", "Two", finished=False)
    [pair] = seva.pairs(rows, SETTINGS, 7)
    assert pair == Pair("a", ("a.png",), "Q?", "A cat.", "A dog.", reference_logps={"chosen": -1.0, "rejected": -1.0})


def test_a_yes_no_answer_must_change_its_mind():
    rows = two("a", "Yes.", "Yes, there is.", "exists") + two("b", "Yes.", "No.", "exists") + two("c", "No.", "Yes.", "exists")
    assert ids(seva.pairs(rows, SETTINGS, 0)) == ["b", "c"]


def test_yes_and_no_are_balanced_and_descriptions_stay():
    rows = [row for i in range(9) for row in two(f"no{i}", "No.", "Yes.", "exists")]
    rows += [row for i in range(4) for row in two(f"yes{i}", "Yes.", "No.", "exists")]
    rows += two("d", "A cat.", "A dog.")
    pairs = seva.pairs(rows, SETTINGS, 0)
    assert [sum(id.startswith(side) for id in ids(pairs)) for side in ("no", "yes", "d")] == [4, 4, 1]
    assert ids(pairs) == ids(seva.pairs(rows, SETTINGS, 0)) != ids(seva.pairs(rows, SETTINGS, 1))


def test_lengths_are_balanced_where_asked_for():
    rows = two("a", "A cat.", "A dog.") + two("b", "Yes.", "No.", "exists") + two("c", "No.", "Yes.", "exists")
    rows += [response("long", "clean", "A cat and a dog."), replace(response("long", "crop", "A."), tokens=40)]
    assert ids(seva.pairs(rows, replace(SETTINGS, max_length_gap=1.0), 0)) == ["a", "b", "c"]
    assert ids(seva.pairs(rows, SETTINGS, 0)) == ["a", "long", "b", "c"]


def test_a_yes_must_be_sure_where_asked_for():
    rows = [row for i in range(3) for row in two(f"no{i}", "No.", "Yes.", "exists")]
    for name, doubt in (("sure", 3.0), ("unsure", 1.0)):
        clean, distorted = two(name, "Yes.", "No.", "exists")
        rows += [clean, replace(distorted, reference_logp=clean.reference_logp - doubt)]
    assert {"sure", "unsure"} <= set(ids(seva.pairs(rows, SETTINGS, 0)))
    some = ids(seva.pairs(rows, replace(SETTINGS, min_yes_margin=2.0), 0))
    assert len(some) == 2 and "sure" in some and "unsure" not in some


def test_what_gave_no_pair_is_told():
    rows = two("a", "A cat.", "A dog.") + two("b", "Same.", "Same.") + two("c", "One", "Two", finished=False)
    rows += two("d", "No.", "Yes.", "exists")
    told = seva.summary(rows, seva.pairs(rows, SETTINGS, 0))
    assert told == "4 prompts gave 1 pair (both answers the same: 1, one cut off: 1, left out for balance: 1)."


def test_answers_that_do_not_belong_together_are_refused():
    with pytest.raises(UserError, match="clean and a distorted answer to a"):
        seva.pairs([response("a", "clean", "x"), response("b", "crop", "y")], SETTINGS, 0)


def job(folder, change=lambda policy: policy, on_metrics=None):
    photos = world_photos(folder, "unlabelled", 4, 0)
    return Job(Run(folder), change(load("tiny")), make_prompts(photos, world_mix(1), 5), seed=5, on_metrics=on_metrics)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One undisturbed run."""
    one = job(tmp_path_factory.mktemp("whole"))
    methods.find("seva").train(one, SETTINGS)
    one.run.close()
    return one


def test_a_run_leaves_every_stage(whole):
    responses = read_jsonl(whole.run.folder / "responses.jsonl", Response)
    first = whole.prompts[0].id
    assert [(r.id, r.view) for r in responses[:2]] == [(first, "clean"), (first, "diffusion-600")]
    assert len(responses) == 16 and responses[-1].view == "grayscale"
    pairs = read_jsonl(whole.run.folder / "pairs.jsonl", Pair)
    assert 0 < len(pairs) <= 8
    assert read_metrics(whole.run.metrics)[0]["train_loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert [row["answer_length"] > 0 for row in read_metrics(whole.run.metrics)] == [True] * 5
    assert (whole.run.adapter / "adapters.safetensors").exists()


def test_reference_logps_are_those_of_the_pair_as_trained(whole):
    """Scored hot, from the generation's prefix; scored again by itself, the same."""
    policy = load("tiny")
    for pair in read_jsonl(whole.run.folder / "pairs.jsonl", Pair):
        prefix = policy.prefill(policy.image_features([whole.run.folder / pair.images[0]]), [policy.prompt_ids(pair.prompt)])
        again = policy.score(prefix, [[policy.response_ids(text) for text in (pair.chosen, pair.rejected)]])
        np.testing.assert_allclose(again[0], [*pair.reference_logps.values()], atol=2 * SAME_SUM)


def test_a_stopped_run_ends_with_the_same_adapter(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mlx_visalign.training.pair_filters.FEW", 2)  # more than all of the images
    first = job(tmp_path, on_metrics=stop_at(3))
    with pytest.raises(StopError):
        methods.find("seva").train(first, SETTINGS)
    assert "of 4 images gave a pair" in capsys.readouterr().err
    first.run.close()
    second = job(tmp_path)
    methods.find("seva").train(second, SETTINGS)
    name = "adapters.safetensors"
    assert (tmp_path / "adapter" / name).read_bytes() == (whole.run.adapter / name).read_bytes()


def test_with_mdpo_the_damaged_images_are_scored_once_and_a_stopped_run_goes_on(whole, tmp_path):
    settings = replace(SETTINGS, train=replace(SETTINGS.train, loss_type="mdpo"))
    adapters = []
    for name, on_metrics in (("whole", None), ("stopped", stop_at(3)), ("stopped", None)):
        one = job(tmp_path / name, on_metrics=on_metrics)
        with suppress(StopError):
            methods.find("seva").train(one, settings)
            adapters.append((one.run.adapter / "adapters.safetensors").read_bytes())
        one.run.close()
    assert len(adapters) == 2 and adapters[0] == adapters[1]
    assert read_metrics(tmp_path / "whole/metrics.jsonl")[0]["train_loss"] == pytest.approx(3 * np.log(2), abs=5e-5)
    plain, scored = (read_jsonl(folder / "pairs.jsonl", Pair) for folder in (whole.run.folder, tmp_path / "whole"))
    assert [(pair.id, pair.chosen) for pair in plain] == [(pair.id, pair.chosen) for pair in scored]
    for one, other in zip(plain, scored, strict=True):
        assert other.reference_logps.keys() == {"chosen", "rejected", "corrupted_chosen"}
        assert other.reference_logps["chosen"] == pytest.approx(one.reference_logps["chosen"], abs=2 * SAME_SUM)


def test_another_view_in_the_same_folder_is_refused(whole):
    again = replace(whole, run=Run(whole.run.folder), policy=load("tiny"))
    with pytest.raises(UserError, match="view"):
        methods.find("seva").train(again, replace(SETTINGS, view="moco"))


@pytest.mark.parametrize(("change", "dtype"), [(bf16, "bfloat16"), (four_bit, "4-bit")])
def test_a_short_run_on_a_small_base(tmp_path, change, dtype):
    """The first loss is ln 2 within the noise of the dtype (reference and policy run different batches)."""
    one = job(tmp_path, change)
    assert one.policy.dtype == dtype
    methods.find("seva").train(one, SETTINGS)
    rows = read_metrics(one.run.metrics)
    assert rows[0]["train_loss"] == pytest.approx(np.log(2), abs=0.02)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    adapter = mx.load(str(one.run.adapter / "adapters.safetensors"))
    assert all(array.dtype == mx.float32 for array in adapter.values())
    assert any(mx.abs(array).max() > 0 for name, array in adapter.items() if name.endswith("lora_b"))
