"""Image sources: each one's images, prompts, vocabulary and benchmark, and that a world of one's own is a line in a table."""

import json

import pytest
from PIL import Image
from sample_photos import write_photos

from mlx_visalign import methods
from mlx_visalign.data.image_folder import Photo
from mlx_visalign.data.object_vocabulary import Entry, Vocabulary, coco80
from mlx_visalign.data.questions import DESCRIPTION_PROMPTS, Mix
from mlx_visalign.data.records import Prompt
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.methods.fisao.calibration import read_labels
from mlx_visalign.pipeline.compare import images_to_compare
from mlx_visalign.pipeline.dry_run import upper_bounds
from mlx_visalign.pipeline.prompts_stage import ask, images_of_run
from mlx_visalign.runs.image_sources import FolderSource, ImageSource, PromptFileSource, WorldSource, source_of
from mlx_visalign.runs.recipe import Recipe, find_recipe, make_plan
from mlx_visalign.runs.run import Run
from mlx_visalign.runs.worlds import WORLDS, World, find_world
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import scene
from mlx_visalign.utils.errors import UserError

SCENE = 1_000_000  # the first of the split "unlabelled"


class Squares:
    """A world outside of the package: grey squares, each with a square in it."""

    name = "squares"
    title = "squares"
    model = "tiny"

    def photos(self, count, seed):
        return [Photo(f"square-{n}", f"images/square-{n}.png") for n in range(seed * count, (seed + 1) * count)]

    def draw(self, folder, count, seed):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for photo in self.photos(count, seed):
            Image.new("RGB", (28, 28), "grey").save(folder / photo.image)

    def mix(self, questions):
        return Mix(("What is it?",), Vocabulary((Entry("square", ("square",)),)), questions)

    def benchmark(self, split, count):
        pictures = {f"{split}-{n}": Image.new("RGB", (28, 28), "grey") for n in range(count)}
        return Benchmark("squares", pictures, self.labels(pictures), self.mix(0).vocabulary)

    def labels(self, images):
        return {image: {"square"} for image in images if "-" in image}


@pytest.fixture
def squares(monkeypatch):
    monkeypatch.setitem(WORLDS, "squares", Squares())
    return {"images": "squares", "max_images": 20, "eval_images": 3, "questions_per_image": 1}


def test_a_worlds_images_are_drawn_asked_about_and_measured_on_others(tmp_path):
    source = source_of(
        Recipe("seva", images="tiny-world", max_images=3, eval_images=2, questions_per_image=1, split="held-out")
    )
    assert isinstance(source, WorldSource) and isinstance(source, ImageSource)
    photos, prompts = source.read()
    source.draw(tmp_path)
    assert [photo.image for photo in photos] == [f"images/scene-{SCENE + n}.png" for n in range(3)]
    assert all((tmp_path / photo.image).is_file() for photo in photos)
    assert [prompt.kind for prompt in prompts] == 3 * ["describe"] + 3 * ["exists"]
    assert "red circle" in source.vocabulary().objects
    benchmark = source.benchmark(prompts, [], tmp_path)
    assert len(benchmark.pictures) == len(benchmark.annotations) == source.benchmark_size(prompts, []) == 2
    assert all(image.startswith("held-out-") for image in benchmark.pictures)
    assert (source.place, source.title, source.argument) == ("tiny-world", "3 scenes of the tiny world", "tiny-world")


def test_photos_of_ones_own_stay_where_they_are(tmp_path, monkeypatch):
    folder = write_photos(tmp_path / "photos", 12)
    monkeypatch.chdir(tmp_path)
    source = source_of(Recipe("seva", "tiny", "photos", max_images=11, questions_per_image=0))
    assert isinstance(source, FolderSource) and isinstance(source, ImageSource)
    photos, prompts = source.read()
    source.draw(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(photos) == len(prompts) == 11 and {prompt.prompt for prompt in prompts} <= set(DESCRIPTION_PROMPTS)
    assert source.vocabulary() == coco80()
    benchmark = source.benchmark(prompts[1:], prompts[:1], tmp_path / "run")
    assert list(benchmark.pictures.values()) == [folder / prompts[0].image] and not benchmark.annotations
    assert benchmark.name == "1 image that was not trained on" and source.benchmark_size(prompts[1:], prompts[:1]) == 1
    assert source.benchmark(prompts, [], tmp_path).name == "11 images that were trained on"
    assert (source.place, source.title, source.argument) == (str(folder), "the images in photos", "PHOTOS")
    with pytest.raises(UserError, match=r"gone\.png"):
        source.require_unchanged({"gone.png": "0"})


def test_at_most_24_photos_are_measured_on(tmp_path):
    prompts = [Prompt(str(n), f"{n // 2}.png", "What?") for n in range(60)]
    source = source_of(Recipe("seva", "tiny", str(tmp_path)))
    assert len(source.benchmark(prompts, [], tmp_path).pictures) == source.benchmark_size(prompts, []) == 24


def test_a_prompt_file_says_what_is_asked(tmp_path):
    file = write_photos(tmp_path / "photos", 1) / "mine.jsonl"
    file.write_text(json.dumps({"id": "1", "image": "0.png", "prompt": "Why?"}) + "\n")
    source = source_of(Recipe("seva", "tiny", prompts=str(file)))
    assert isinstance(source, PromptFileSource) and isinstance(source, ImageSource)
    photos, prompts = source.read()
    assert [(prompt.prompt, prompt.image) for prompt in prompts] == [("Why?", str(file.parent / "0.png"))]
    assert [photo.image for photo in photos] == [prompts[0].image]
    assert (source.place, source.title, source.argument) == (None, f"the images in {file}", "PHOTOS")


def test_the_tiny_world_knows_its_scenes_by_their_files():
    world = find_world("tiny-world")
    assert isinstance(world, World)
    images = [f"images/scene-{SCENE}.png", "cat.png"]
    assert world.labels(images) == {images[0]: set(map(str, scene(SCENE).types))}


def test_a_first_start_draws_every_scene_once(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("mlx_visalign.tiny_world.source.draw", lambda scene: drawn.append(scene) or draw(scene))
    with Run(tmp_path) as run:
        ask(Recipe("seva", images="tiny-world", max_images=4), run)
    assert len(drawn) == 4


@pytest.mark.parametrize("name", [None, "photos", ("tiny-world",), ["tiny-world"]])
def test_what_is_no_world(name):
    assert find_world(name) is None


def test_a_world_outside_of_the_package_is_asked_about(squares, tmp_path):
    with Run(tmp_path) as run:
        trained, kept = ask(Recipe("seva", **squares), run)
    assert len(trained) == 2 * 18 and len(kept) == 2 * 2
    assert {prompt.prompt for prompt in trained} == {"What is it?", "Is there a square in the image?"}
    assert all((tmp_path / prompt.image).is_file() for prompt in trained + kept)
    assert images_of_run(tmp_path) is None
    assert read_labels("squares", [kept[0].image], Vocabulary(())) == {kept[0].image: {"square"}}


def test_a_world_outside_of_the_package_gets_what_the_tiny_one_gets(squares):
    plan = make_plan(find_recipe("seva"), methods.find, None, squares | {"controls": True})
    assert plan.recipe.model == "tiny"
    told = upper_bounds(plan)
    assert told["images"] == 18 and "controls" in told
    assert set(images_to_compare("squares", 2).annotations) == {"validation-0", "validation-1"}
    with pytest.raises(UserError, match="How many squares"):
        make_plan(find_recipe("seva"), methods.find, None, {"images": "squares"})
    with pytest.raises(UserError, match="squares cannot be combined"):
        Recipe("seva", "tiny", images=("photos", "squares"))
    with pytest.raises(UserError, match="use --images tiny-world or squares"):
        Recipe("seva", "tiny", "photos", controls=True)
