"""The picture of a tree: every sentence once, its paths in colour, at six levels and with hostile text."""

from itertools import pairwise

from PIL import Image

from mlx_visalign.methods.csr.figures import _drawn, _layout, draw_tree, fragment, plot_rounds, rounds_in_html
from mlx_visalign.methods.csr.rewards import Sentence, Tree

IMAGE = Image.new("RGB", (48, 30), "#204060")


def grown(levels, text="A dog $x_1$ <b>lies</b> on a couch, and quite a lot is said about it in many words again and again"):
    """A tree of three nodes a level that grow on, and two streams that end."""
    sentences, parents = [], [-1]
    for _ in range(levels):
        children = []
        for parent in parents:
            for stream in range(3):
                children.append(len(sentences))
                sentences.append(Sentence(parent, stream, f"{text}.", (stream, 2), -2.0, -2.5, "grown", 20.0, -0.5, -0.5))
            for stream in (3, 4):
                sentences.append(Sentence(parent, stream, "", (1,), -3.0, -3.0, "final", None, -1.0, -0.6))
        parents = children[:3]
    ends = [place for place, sentence in enumerate(sentences) if sentence.fate == "final"]
    return Tree("a", "a.png", "Describe the image.", 99, tuple(sentences), ends[0], ends[-1], "x", "y", (3, 4), (-1.0, -2.0))


def test_equal_endings_are_drawn_once_and_nothing_overlaps():
    tree = grown(3)
    counts = _drawn(tree)
    assert sum(counts.values()) == len(tree.sentences)
    assert sorted(set(counts.values())) == [1, 2]
    assert {tree.chosen, tree.rejected} <= counts.keys()
    boxes = sorted(_layout(tree).values(), key=lambda box: (box.x, -box.y))
    for above, below in pairwise(boxes):
        assert above.x != below.x or above.y - above.height / 2 > below.y + below.height / 2


def test_six_levels_make_a_readable_picture(tmp_path):
    draw_tree(grown(6), IMAGE, "A tree", tmp_path / "plots" / "tree.png")
    with Image.open(tmp_path / "plots" / "tree.png") as picture:
        assert 1800 < picture.width < 3200 and 800 < picture.height < 2400
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(0x1F, 0x5F, 0xA8), (0xC8, 0x32, 0x2B)} <= colours


def test_a_tree_without_a_pair_is_drawn_too(tmp_path):
    lone = Tree("a", "a.png", "What?", 2, (Sentence(-1, 0, "nonono", (4, 4), -9.0, -9.0, "broken"),))
    draw_tree(lone, IMAGE, "A tree", tmp_path / "tree.png")
    assert (tmp_path / "tree.png").stat().st_size > 1000
    assert "No two different complete answers" in fragment(lone, IMAGE, "A tree")


def test_the_html_escapes_text_and_says_every_sentence_once():
    tree = grown(2)
    made = fragment(tree, IMAGE, "A <tree>")
    assert "A &lt;tree&gt;" in made and "&lt;b&gt;lies" in made and "<b>lies" not in made
    assert made.count("<li>") == len(_drawn(tree)) < len(tree.sentences)
    assert made.count('<details open="">') == len({*tree.path(tree.chosen)[:-1], *tree.path(tree.rejected)[:-1]})
    dots = {side: made.count(f'class="{side}"') for side in ("chosen", "rejected")}
    assert dots == {"chosen": len(tree.path(tree.chosen)), "rejected": len(tree.path(tree.rejected))}


def test_rounds_are_plotted(tmp_path):
    rounds = [
        {
            "round": number,
            "reward": {"chosen": -0.2, "rejected": -0.8},
            "image_score": {"all": 20.0, "chosen": 24.0 + number, "rejected": 15.0},
            "tokens": {"chosen": 30.0, "rejected": 31.0},
        }
        for number in (1, 2, 3)
    ]
    for count in (1, 3):
        plot_rounds(rounds[:count], tmp_path / f"{count}.png")
        assert (tmp_path / f"{count}.png").stat().st_size > 1000
    made = rounds_in_html(rounds)
    assert made.count("<svg") == 3 and made.count("<polyline") == 2 * (2 + 3 + 2)
