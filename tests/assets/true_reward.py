"""A reward of one's own, for the tests: how many of a scene's objects an answer names, less for every word."""

import re

from mlx_visalign.tiny_world.scenes import scene


def reward(images, prompts, answers):
    scenes = [scene(int(re.findall("[0-9]+", image.name)[0])) for image in images]
    named = [sum(str(kind) in answer for kind in one.types) for one, answer in zip(scenes, answers, strict=True)]
    return [count - 0.01 * len(answer.split()) for count, answer in zip(named, answers, strict=True)]
