"""What is really in the images, from any source: COCO's instances, a made-up world's scenes, or somebody's own list."""

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import permutations

Annotations = Mapping[str, Set[str]]
"""For each image's id, the canonical names of the objects in it."""


@dataclass(frozen=True)
class ObjectCounts:
    """How many images show an object (`single`), and how many show it together with another (`together[a][b]`)."""

    single: Counter[str]
    together: dict[str, Counter[str]]

    @classmethod
    def of(cls, images: Iterable[Set[str]]) -> "ObjectCounts":
        """Counted over the objects of each image."""
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


def _by_count(counts: Counter[str]) -> list[str]:
    # Ties by name, so that the order of a set or a file changes nothing.
    return sorted(counts, key=lambda name: (-counts[name], name))
