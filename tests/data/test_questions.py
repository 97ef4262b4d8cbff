"""Questions about unlabelled images: the mix, its order, and that it depends on seed and image alone."""

import json

import numpy as np
import pytest
from PIL import Image

from mlx_visalign.data.image_folder import Photo
from mlx_visalign.data.object_vocabulary import coco80, question
from mlx_visalign.data.questions import DESCRIPTION_PROMPTS, Mix, make_prompts, read_prompts
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import SPLITS, scene
from mlx_visalign.tiny_world.source import world_mix, world_photos, world_scenes
from mlx_visalign.utils.errors import UserError

PHOTOS = [Photo(f"photo-{index}", f"/photos/{index}.jpg") for index in range(40)]
MIX = Mix(DESCRIPTION_PROMPTS, coco80())


def test_every_image_is_described_and_asked_about_twice():
    prompts = make_prompts(PHOTOS, MIX, seed=0)
    assert [prompt.kind for prompt in prompts] == 40 * ["describe"] + 80 * ["exists"]
    assert len({prompt.id for prompt in prompts}) == 120
    assert {prompt.prompt for prompt in prompts[:40]} <= set(DESCRIPTION_PROMPTS)
    assert len({prompt.prompt for prompt in prompts[:40]}) > 5
    for photo in PHOTOS:
        asked = [prompt.prompt for prompt in prompts if prompt.image == photo.image and prompt.kind == "exists"]
        assert len(set(asked)) == 2
        assert set(asked) <= {question(name) for name in coco80().objects}


def test_prompts_depend_on_seed_and_image_alone():
    everything = make_prompts(PHOTOS, MIX, seed=0)
    assert make_prompts(PHOTOS[7:9], MIX, seed=0) == [p for p in everything if p.id.startswith(("photo-7-", "photo-8-"))]
    assert make_prompts(PHOTOS, MIX, seed=1) != everything


def test_the_tiny_world_is_drawn_as_it_is_and_asked_in_its_own_words(tmp_path):
    photos = world_photos(tmp_path, "unlabelled", count=3, start=5)
    seeds = SPLITS["unlabelled"][5:8]
    assert [photo.id for photo in photos] == [f"scene-{seed}" for seed in seeds]
    for photo, seed in zip(photos, seeds, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / photo.image)), draw(scene(seed)))
    prompts = make_prompts(photos, world_mix(questions=1), seed=0)
    assert prompts[0].prompt == "Describe this image in detail."
    assert prompts[3].prompt.startswith("Is there a ")


def test_scenes_have_their_names_before_they_are_drawn(tmp_path):
    assert world_scenes("unlabelled", 3, 5) == world_photos(tmp_path, "unlabelled", 3, 5)


def test_a_split_of_the_tiny_world_has_an_end(tmp_path):
    with pytest.raises(UserError, match="unlabelled of the tiny world has 1,000,000 scenes"):
        world_photos(tmp_path, "unlabelled", count=2, start=len(SPLITS["unlabelled"]) - 1)


@pytest.fixture
def prompts_file(tmp_path):
    def write(*rows):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps({"image": "a.png", "prompt": "What?"} | row) + "\n" for row in rows))
        return path

    return write


def test_a_users_prompts_come_descriptions_first_with_absolute_images(prompts_file, tmp_path):
    path = prompts_file({"id": "1"}, {"id": "2", "kind": "exists"}, {"id": "3", "kind": "describe"})
    prompts = read_prompts(path)
    assert [prompt.id for prompt in prompts] == ["3", "2", "1"]
    assert {prompt.image for prompt in prompts} == {str(tmp_path / "a.png")}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "contains no prompts"),
        ([{"id": "1"}, {"id": "1"}], r"prompts\.jsonl:2: the id '1' is also used at .*prompts\.jsonl:1"),
        ([{"id": "1", "image": "b.png"}], r"prompts\.jsonl:1: there is no image .*b\.png"),
        ([{"id": "1", "image": "../a.png"}], r"prompts\.jsonl:1: the image \.\./a\.png lies outside"),
    ],
)
def test_bad_prompts_are_the_users_mistake(prompts_file, rows, message):
    with pytest.raises(UserError, match=message):
        read_prompts(prompts_file(*rows))
