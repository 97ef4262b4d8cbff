"""Object labels: the objects known to be in each image.

They come from a world whose scenes are known, or from a list in a JSON file,

    {"cat.jpg": ["cat", "sofa"], "street/1.jpg": ["car", "person", "traffic light"]}

with objects named as in the vocabulary, by any of their phrases.
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
"""The canonical names of the objects in each image, by the image's id."""


@dataclass(frozen=True)
class ObjectCounts:
    """How many images show an object (`single`), and how many show it together with another (`together[a][b]`)."""

    single: Counter[str]
    together: dict[str, Counter[str]]

    @classmethod
    def of(cls, images: Iterable[Set[str]]) -> "ObjectCounts":
        """Counts over the objects of each image."""
        counts = cls(Counter(), {})
        for objects in images:
            counts.single.update(objects)
            for one, other in permutations(objects, 2):
                counts.together.setdefault(one, Counter())[other] += 1
        return counts

    def popular(self) -> list[str]:
        """The objects from the most frequent to the rarest."""
        return _by_count(self.single)

    def companions(self, one: str) -> list[str]:
        """The objects ever seen with `one`, from the most frequent companion to the rarest."""
        return _by_count(self.together.get(one, Counter()))


def read_list(file: Path) -> dict[str, list[str]]:
    """A list's images with their objects, as written. UserError for a file that is no such list."""
    return convert(parse_json(read_text(file), str(file)), dict[str, list[str]], str(file))


def listed_labels(file: Path, images: Sequence[str], vocabulary: Vocabulary) -> Annotations:
    """Labels of those of the images that a list knows by their file names.

    Raises `UserError` for a file that is no such list, and an object that the vocabulary does not know.
    """
    objects = read_list(file)
    known = {image: objects[Path(image).name] for image in images if Path(image).name in objects}
    return canonical_labels(known, vocabulary, str(file))


def canonical_labels(objects: Mapping[str, Sequence[str]], vocabulary: Vocabulary, where: str) -> dict[str, frozenset[str]]:
    """The objects of each image by their canonical names. UserError, beginning with `where`, for all that are unknown."""
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
        raise UserError(f"{where}: the vocabulary knows no object called '{item}'. Extend it with --vocabulary.")
    return found.pop()


def _by_count(counts: Counter[str]) -> list[str]:
    # Ties by name, so that the order of a set or a file changes nothing.
    return sorted(counts, key=lambda name: (-counts[name], name))
