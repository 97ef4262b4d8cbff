"""Ground-truth objects per image.

They come from a world with known scenes, or from a list in a JSON file,

    {"cat.jpg": ["cat", "sofa"], "street/1.jpg": ["car", "person", "traffic light"]}

with objects named by any of their phrases in the vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path

from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.utils.errors import UserError, collect
from mlx_visalign.utils.files import parse_json, read_text
from mlx_visalign.utils.schema import convert

Annotations = Mapping[str, Set[str]]
"""Image id -> canonical names of the objects in the image."""


@dataclass(frozen=True)
class ObjectCounts:
    """Counts of images with an object or pair of objects.

    `single[a]` counts images with a, `together[a][b]` images with both.
    """

    single: Counter[str]
    together: dict[str, Counter[str]]

    @classmethod
    def of(cls, images: Iterable[Set[str]]) -> "ObjectCounts":
        """Count the objects of each image."""
        counts = cls(Counter(), {})
        for objects in images:
            counts.single.update(objects)
            for one, other in permutations(objects, 2):
                counts.together.setdefault(one, Counter())[other] += 1
        return counts

    def popular(self) -> list[str]:
        """Objects, most frequent first."""
        return _by_count(self.single)

    def companions(self, one: str) -> list[str]:
        """Objects seen together with `one`, most frequent first."""
        return _by_count(self.together.get(one, Counter()))


def read_list(file: Path) -> dict[str, list[str]]:
    """A list's images with their objects, as written.

    Raises `UserError` for an invalid list.
    """
    return convert(parse_json(read_text(file), str(file)), dict[str, list[str]], str(file))


def listed_labels(file: Path, images: Sequence[str], vocabulary: Vocabulary) -> Annotations:
    """Labels of the images that a list names.

    By a file's name, or by the end of its path: "street/1.jpg". Raises `UserError` for an invalid list and for an object that
    is not in the vocabulary.
    """
    objects = read_list(file)
    named = {image: next((tail for tail in _tails(image) if tail in objects), None) for image in images}
    known = {image: objects[name] for image, name in named.items() if name is not None}
    return canonical_labels(known, vocabulary, str(file))


def _tails(image: str) -> list[str]:
    """The ends of a path, the longest first: "photos/street/1.jpg", "street/1.jpg", "1.jpg"."""
    parts = Path(image).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]


def canonical_labels(objects: Mapping[str, Sequence[str]], vocabulary: Vocabulary, where: str) -> dict[str, frozenset[str]]:
    """Canonical names of the objects in each image.

    Raises `UserError` for all unknown objects, prefixed by `where`.
    """
    items = [(image, item) for image, some in objects.items() for item in some]
    names = collect(partial(_canonical, item, vocabulary, f"{where}: {image}") for image, item in items)
    found: dict[str, set[str]] = {image: set() for image in objects}
    for (image, _), name in zip(items, names, strict=True):
        found[image].add(name)
    return {image: frozenset(some) for image, some in found.items()}


def _canonical(item: str, vocabulary: Vocabulary, where: str) -> str:
    if item in vocabulary.objects:
        return item
    found = {mention.canonical for mention in vocabulary.mentions(item)}
    if len(found) != 1:
        raise UserError(f"{where}: the vocabulary has no object called '{item}'. Add it with --vocabulary.")
    return found.pop()


def _by_count(counts: Counter[str]) -> list[str]:
    # Break ties by name, so that the order of a set or file has no effect.
    return sorted(counts, key=lambda name: (-counts[name], name))
