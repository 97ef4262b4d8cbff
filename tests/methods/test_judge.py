"""The judge of a run: its stages and their resuming, what it is checked on, its gate, and kinds that need no CLIP."""

import json
import shutil
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from stopping import StopError

from mlx_visalign import methods
from mlx_visalign.data.questions import make_prompts
from mlx_visalign.data.records import read_jsonl
from mlx_visalign.inference.policy import load
from mlx_visalign.methods import judge as module
from mlx_visalign.methods.job import Job
from mlx_visalign.methods.judge import JudgeSettings, Sampled, check_judge, make_judge
from mlx_visalign.methods.method import Method
from mlx_visalign.pipeline.dry_run import own_functions, upper_bounds
from mlx_visalign.runs.recipe import find_recipe, make_plan
from mlx_visalign.runs.run import Run
from mlx_visalign.scorers.consistency import shares_of
from mlx_visalign.scorers.trust import JudgedImage, scale_of, trust
from mlx_visalign.tiny_world.scenes import scene
from mlx_visalign.tiny_world.source import world_mix, world_photos
from mlx_visalign.utils.errors import UserError

WORLD = world_mix(0).vocabulary
IMAGES = 6


@dataclass(frozen=True)
class Settings:
    """The part of a method's settings that a judge reads."""

    clip: str | None = None
    clip_aspect: str = "pad"
    judge: JudgeSettings = field(default_factory=lambda: JudgeSettings(samples=2, check_images=4, debias_images=3, gate="warn"))
    max_tokens: int = 40
    batch: int = 3


SETTINGS = Settings()


def judging(**settings):
    return replace(SETTINGS, judge=replace(SETTINGS.judge, **settings))


@pytest.fixture(scope="module")
def policy():
    return load("tiny")


def job(folder, policy, score=None):
    prompts = make_prompts(world_photos(folder, "unlabelled", IMAGES, 0), world_mix(1), 5)
    return Job(Run(folder), policy, prompts, 5, vocabulary=WORLD, score=score, score_name="made up" if score else "")


def alike(images, texts):
    """A scorer that does not look at the image."""
    return [float(len(text)) for text in texts]


@pytest.fixture(scope="module")
def made(tmp_path_factory, policy):
    """A judge with the built-in CLIP, and its folder."""
    folder = tmp_path_factory.mktemp("judge")
    one = job(folder, policy)
    judge = make_judge(one, SETTINGS)
    one.run.close()
    return judge, one, folder


# -- stages -----------------------------------------------------------------------------------------------------------


def test_samples_are_of_all_images_and_checks_of_some(made):
    judge, one, folder = made
    samples, rows = read_jsonl(folder / "samples.jsonl", Sampled), read_jsonl(folder / "judge.jsonl", JudgedImage)
    assert [row.image for row in samples] == list(dict.fromkeys(prompt.image for prompt in one.prompts))
    assert [row.image for row in rows] == [row.image for row in samples[:4]]
    assert all(len(row.answers) == 2 for row in samples) and len({row.answers for row in samples}) == IMAGES
    assert judge.checked == rows and judge.trust == trust(rows, "clip", "consistency")
    assert json.loads((folder / "judge.json").read_text()) == judge.trust.to_row()


def test_rows_have_every_score_of_what_is_named(made):
    """Greedy mentions have a place, in order, and are scored about another and a blank image too."""
    judge, _, folder = made
    samples = {row.image: row for row in read_jsonl(folder / "samples.jsonl", Sampled)}
    for row in judge.checked:
        greedy = {mention.canonical: mention.start / len(row.text) for mention in reversed(WORLD.mentions(row.text))}
        placed = [one for one in row.objects if one.place is not None]
        assert {one.object: one.place for one in placed} == greedy and sorted(greedy.values()) == [one.place for one in placed]
        shares = shares_of(samples[row.image].answers, WORLD)
        assert {one.object for one in row.objects} == greedy.keys() | shares.keys()
        for one in row.objects:
            assert one.own.keys() == {"clip", "consistency", "self_check"}
            assert one.own["consistency"] == shares.get(one.object, 0.0)
            assert (one.swapped.keys() == one.blank.keys() == one.own.keys()) == (one.place is not None)
    assert any(one.own != one.swapped != one.blank for row in judge.checked for one in row.objects)


def test_another_images_scores_are_those_of_the_next_image(made):
    judge, one, _ = made
    first, following = judge.checked[0], judge.checked[1]
    named = [o for o in first.objects if o.place is not None]
    parts = module._Parts(one, SETTINGS)
    scores = parts.scores["clip"]([one.image(following.image)] * len(named), [o.object for o in named])
    assert [o.swapped["clip"] for o in named] == pytest.approx(scores)
    last = judge.checked[-1]
    named = [o for o in last.objects if o.place is not None]
    shares = parts.consistency.shares(one.image(first.image))
    assert [o.swapped["consistency"] for o in named] == [shares.get(o.object, 0.0) for o in named]


def test_the_combined_judge_is_the_weighted_mean_of_both_scales(made, policy, tmp_path, monkeypatch):
    shutil.copytree(made[2], tmp_path / "copy")
    one = job(tmp_path / "copy", policy)
    monkeypatch.setattr(module, "weights_of", lambda rows: {"clip": 0.3, "consistency": 0.7})
    for settings, expected in ((judging(weights="agreement"), {"clip": 0.3, "consistency": 0.7}), (SETTINGS, {})):
        parts = module._Parts(one, settings)
        rows, found = parts.checked()
        judge, row = parts.judge(rows, found), rows[2]
        assert found.weights == expected
        meant = [
            sum(
                expected.get(part, 0.5) * (o.own[part] - mean) / std
                for part in ("clip", "consistency")
                for mean, std in [scale_of(rows, part)]
            )
            for o in row.objects
        ]
        asked = [one.image(row.image)] * len(row.objects), [o.object for o in row.objects]
        assert judge.objects(*asked) == pytest.approx(meant)


def test_sentences_are_scored_by_their_objects(made):
    judge, one, _ = made
    row = judge.checked[0]
    image, (a, b) = one.image(row.image), [o.object for o in row.objects][:2]
    scores = judge.objects([image, image], [a, b])
    both, single, none = judge.sentences([image] * 3, [f"A {a} and a {b}.", f"A {b}.", "So it is."])
    assert (both, single) == pytest.approx((np.mean(scores), scores[1])) and np.isfinite(none)
    median, width = judge.spread
    assert width > 0 and judge.sentences(*judge.typical).count(median) in range(len(judge.typical[0]) + 1)


STAGES = {"sample": "samples", "judged": "judge"}


def stop_second(patched, name):
    """Let the second batch of a stage stop the check."""
    work, calls = getattr(module._Parts, name), []

    def counted(*arguments):
        calls.append(name)
        if len(calls) == 2:
            raise StopError
        return work(*arguments)

    patched.setattr(module._Parts, name, counted)


def test_a_stopped_check_goes_on_and_ends_as_without_the_stop(made, policy, tmp_path, monkeypatch):
    _, _, whole = made
    for stage in ("sample", "judged"):
        with monkeypatch.context() as patched:
            stop_second(patched, stage)
            one = job(tmp_path, policy)
            with one.run, pytest.raises(StopError):
                make_judge(one, SETTINGS)
        assert [file.name for file in tmp_path.glob("*.partial.jsonl")] == [f"{STAGES[stage]}.partial.jsonl"]
    one = job(tmp_path, policy)
    with one.run:
        make_judge(one, SETTINGS)
    for file in ("samples.jsonl", "judge.jsonl", "judge.json"):
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_finished_check_samples_and_says_nothing_more(made, policy, tmp_path, monkeypatch, capsys):
    judge, _, whole = made
    shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.setattr(module._Parts, "sample", None)
    one = job(tmp_path / "copy", policy)
    with one.run:
        again = make_judge(one, SETTINGS)
    assert again.trust == judge.trust and "this judge" not in capsys.readouterr().err


def test_damaged_scores_are_refused(made, policy, tmp_path):
    shutil.copytree(made[2], tmp_path / "copy")
    file = tmp_path / "copy/judge.jsonl"
    file.write_text(file.read_text().replace('"clip":', '"clap":', 1))
    one = job(tmp_path / "copy", policy)
    with one.run, pytest.raises(UserError, match=r"judge\.jsonl:1: expected scores by clip, consistency, self_check"):
        make_judge(one, SETTINGS)


# -- the gate ---------------------------------------------------------------------------------------------------------


def test_a_judge_that_does_not_look_stops_the_run(policy, tmp_path):
    one = job(tmp_path, policy, alike)
    with one.run, pytest.raises(UserError, match=r"Stop: do not train on this judge: your scorer hardly.*judge\.gate=warn"):
        make_judge(one, judging(gate="stop"))
    assert json.loads((tmp_path / "judge.json").read_text())["verdict"] == "stop"
    with one.run:
        assert check_judge(one, judging(gate="stop")).verdict == "stop"  # says so, and stops nothing
        judge = make_judge(one, judging(gate="warn"))  # the same stages: the gate is none of what they depend on
    assert judge.trust.verdict == "stop"


@pytest.mark.parametrize("method", ["csr", "fisao"])
def test_nothing_is_trained_behind_the_gate(method, policy, tmp_path):
    found: Method = methods.find(method)
    settings = found.Settings(judge=judging(gate="stop").judge, max_tokens=24, batch=3)
    one = job(tmp_path, policy, alike)
    with one.run, pytest.raises(UserError, match="Stop: do not train on this judge"):
        found.train(one, settings)
    left = {file.name for file in tmp_path.glob("*.jsonl")}
    assert left == {"samples.jsonl", "judge.jsonl"} and not (tmp_path / "adapter").exists()


# -- kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "compared"),
    [
        ("combined", ("clip", "consistency")),
        ("nouns", ("clip", "consistency")),
        ("consistency", ("consistency", "self_check")),
        ("self_check", ("self_check", "consistency")),
    ],
)
def test_a_kind_is_compared_with_the_next_best(kind, compared, policy, tmp_path, monkeypatch):
    """Without any CLIP, where it needs none."""
    settings = judging(kind=kind)
    if not settings.judge.reads_clip:
        monkeypatch.setattr(module, "clip_scorer", None)
    else:
        monkeypatch.setattr(module, "clip_scorer", lambda *_: seeing)
    one = job(tmp_path, policy)
    with one.run:
        judge = make_judge(one, settings)
    assert (judge.trust.judge, judge.trust.other) == compared
    image = one.image(one.prompts[0].image)
    assert np.isfinite(judge.sentences([image] * 2, ["A red circle.", "So it is."])).all()
    if not settings.judge.reads_clip:
        assert judge.sentences([image], ["So it is."]) == [0.0]


def seeing(images, texts):
    """A made-up scorer that knows the scenes."""
    numbers = [image.stem.rpartition("-")[2] for image in images]
    return [
        float(number.isdecimal() and any(str(t) in text for t in scene(int(number)).types))
        for number, text in zip(numbers, texts, strict=True)
    ]


def test_clip_alone_scores_whole_sentences(policy, tmp_path):
    one = job(tmp_path, policy, seeing)
    with one.run:
        judge = make_judge(one, judging(kind="clip"))
    assert judge.sentences is seeing and judge.name["scorer"] == "made up"


@pytest.mark.parametrize("method", ["csr", "fisao"])
def test_a_real_model_needs_a_clip_only_where_the_judge_reads_one(method, tmp_path):
    model = find_recipe(method).parents[1] / "tests/second_base/llava"
    given = {"model": str(model), "images": "."}
    with pytest.raises(UserError, match="Which CLIP model should score"):
        own_functions(make_plan(find_recipe(method), methods.find, None, given))
    for kind in ("consistency", "self_check"):
        own_functions(make_plan(find_recipe(method), methods.find, None, given | {"settings.judge.kind": kind}))


@pytest.mark.parametrize("method", ["csr", "fisao"])
def test_a_dry_run_counts_the_judges_stages(method):
    given = {"images": "tiny-world", "max_images": 100, "settings.judge.check_images": 20}
    answered = upper_bounds(make_plan(find_recipe(method), methods.find, "tiny", given))["prompts_answered"]
    assert (answered["sampling for consistency"], answered["checking the judge"]) == (90, 20)
    given |= {"settings.judge.kind": "self_check"}
    answered = upper_bounds(make_plan(find_recipe(method), methods.find, "tiny", given))["prompts_answered"]
    assert answered["sampling for consistency"] == 20


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"phrase": "a cat"}, "must contain {}"), ({"samples": 1}, "samples is 1"), ({"check_images": 0}, "check_images is 0")],
)
def test_settings_out_of_range(settings, why):
    with pytest.raises(UserError, match=why):
        JudgeSettings(**settings)


def test_a_broken_clip_is_found_before_the_sampling(policy, tmp_path):
    one = job(tmp_path, policy)
    with one.run, pytest.raises(UserError, match="no-clip"):
        make_judge(one, replace(SETTINGS, clip=str(tmp_path / "no-clip")))
    assert not list(tmp_path.glob("*.jsonl"))
