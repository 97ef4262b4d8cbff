"""What an evaluation looks at: images, what is known to be in them, and questions about them."""

from dataclasses import dataclass, field

from mlx_visalign.data.images import Picture
from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.evaluation.annotations import Annotations
from mlx_visalign.evaluation.capability import Exercise
from mlx_visalign.evaluation.pope import Question, Split

PER_IMAGE = 3  # questions about what is there, and as many about what is not; the number of the POPE paper
UNLABELLED = (
    "Nobody has said what is in these images, so there is no CHAIR and no POPE here, and nothing that measures "
    "hallucination. Compare the answers with the images yourself."
)


@dataclass(frozen=True)
class Benchmark:
    """Images by id, and what is known of them; with pictures alone, only descriptions can be made.

    questions  yes/no questions by POPE split, "random" and so on
    exercises  questions of kinds that are not trained, where right answers are known
    limits     what figures on these images cannot show, for every report to say
    """

    name: str
    pictures: dict[str, Picture]
    annotations: Annotations = field(default_factory=dict)
    vocabulary: Vocabulary = field(default_factory=lambda: Vocabulary(()))
    questions: dict[Split, list[Question]] = field(default_factory=dict)
    exercises: list[Exercise] = field(default_factory=list)
    limits: str = UNLABELLED
