"""Comparing: what a name means, the same keys for both, and what the page marks."""

from dataclasses import replace

import pytest
from made_evaluations import said
from random_policy import random_policy
from sample_photos import write_photos

from mlx_visalign.evaluation.benchmark import UNLABELLED, Benchmark
from mlx_visalign.evaluation.runner import Evaluation, Protocol
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.models.lora import LoRASettings, adapters
from mlx_visalign.pipeline import compare
from mlx_visalign.pipeline.compare import Contender, ask, compare_page, contender, images_to_compare
from mlx_visalign.utils.errors import UserError

PROTOCOL = Protocol("What is it?", 8)
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with an adapter of two rounds, and the policy that has it."""
    folder, policy = tmp_path_factory.mktemp("run"), random_policy()
    for seed in (1, 2):
        policy.attach(LoRASettings(rank=2), seed)
        for layer in adapters(policy.model).values():
            layer.lora_b = layer.lora_b + 0.5
    policy.save_adapter(folder / "adapter")
    return folder, policy


def test_names(run):
    folder, _ = run
    assert contender("tiny", "model") == Contender("tiny", "tiny")
    for name in (str(folder), str(folder / "adapter")):
        assert contender(name, "model") == Contender(name, "model", folder / "adapter", 2)
        assert contender(f"{name}@1", "model") == Contender(f"{name}@1", "model", folder / "adapter", 1)
    with pytest.raises(UserError, match="nowhere"):
        contender("nowhere", "model")
    with pytest.raises(UserError, match=r"has 2 rounds. Name a round from 0"):
        contender(f"{folder}@3", "model")


def test_the_key_is_the_images_and_the_rounds_are_those_named(run, tmp_path, monkeypatch):
    folder, policy = run
    monkeypatch.setattr(compare, "load", lambda model, adapter: policy if adapter else random_policy())
    benchmark = images_to_compare(str(write_photos(tmp_path / "photos", 3)), 2)
    assert len(benchmark.pictures) == 2
    base, none, one, two = (
        ask(each, benchmark, PROTOCOL, Sampling(8, temperature=1.0), 0).responses
        for each in (Contender("m", "m"), *(Contender("a", "m", folder, rounds) for rounds in range(3)))
    )
    assert none == base
    assert len({tuple(answer.text for answer in answers) for answers in (base, one, two)}) == 3


def test_a_damaged_image_is_left_out_and_counted(tmp_path, capsys):
    (write_photos(tmp_path / "photos", 3) / "0.png").write_bytes(b"torn")
    assert len(images_to_compare(str(tmp_path / "photos"), 24).pictures) == 2
    assert "2 photos in " in (said := capsys.readouterr().err) and "1 that cannot be used" in said


def test_an_answer_does_not_depend_on_the_other_images(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "load", lambda model, adapter: random_policy())
    everything = images_to_compare(str(write_photos(tmp_path / "photos", 3)), 3)
    last = list(everything.pictures)[-1]
    sampling = Sampling(8, temperature=1.0)
    alone = replace(everything, pictures={last: everything.pictures[last]})
    whole, single = (ask(Contender("m", "m"), some, PROTOCOL, sampling, 0) for some in (everything, alone))
    assert whole.description(last) == single.description(last)


def test_scenes_of_the_tiny_world_are_labelled():
    benchmark = images_to_compare("tiny-world", 2)
    assert benchmark.annotations.keys() == benchmark.pictures.keys() and not benchmark.questions


def test_the_page_marks_what_is_wrong_and_what_changed():
    first = said({"a": "A cat and a dog.", "b": "A cat.", "c": "Nothing."}, {"a": "Yes.", "b": "No."})
    second = said({"a": "One cat.", "b": "A cat.", "c": "Nothing."}, {"a": "Yes.", "b": "No."})
    made = compare_page(first, second, ("base", f"runs/{HOSTILE}"))
    assert '<mark class="wrong">dog</mark>' in made and '<mark class="changed">One</mark>' in made
    assert "1 of 3 descriptions differ. Hallucinated objects:" in made and "in 1 of them" in made
    assert "change, 95 % interval" in made and "Shares are in %" in made and "<dt>CHAIR_i</dt>" in made
    assert "<script" not in made and "runs/&lt;script&gt;" in made


def test_without_labels_only_changes_are_marked():
    first = said({"a": "A cat.", "b": "A cat.", "c": "."}, {"a": "Yes.", "b": "No."})
    plain = Benchmark("photos", first.benchmark.pictures)
    made = compare_page(*[Evaluation(plain, first.protocol, first.responses)] * 2, ("a", "b"))
    assert "0 of 3 descriptions differ." in made and "CHAIR_i" not in made and UNLABELLED in made
