"""Pictures of rewards: colours, and text that stays as it is."""

import numpy as np
import pytest
from PIL import Image

from mlx_visalign.methods.fisao import figures as pictures
from mlx_visalign.methods.fisao.calibration import Scored, calibrate
from mlx_visalign.training.trajectory import Rewarded

TEXT = "A <b>dog</b> & a hot dog."
ANSWER = pictures.RewardedAnswer(
    "before", TEXT, (Rewarded("dog", 5, 8, 2, 2, 24.5, 0.5), Rewarded("hot dog", 17, 24, 6, 7, 11.0, -1.0))
)
AFTER = pictures.RewardedAnswer("after", "Nothing.", ())
REWARDED = [pictures.RewardedImage(Image.new("RGB", (48, 48), "navy"), (ANSWER, AFTER))]


def rows(correct, hallucinated):
    sides = ((True, correct), (False, hallucinated))
    return [Scored("a", "a.png", "cat", float(score), side) for side, scores in sides for score in scores]


def test_shades_go_from_red_over_grey_to_blue():
    assert pictures.shade(1.0) == pictures.shade(1.5) == "#82b9f0"
    assert pictures.shade(-1.0) == "#f58c82" and pictures.shade(0) == "#e4e4e4"
    blues = [int(pictures.shade(reward)[1:3], 16) for reward in (0, 0.3, 0.6, 0.9)]
    assert blues == sorted(blues, reverse=True)


def test_words_keep_their_text_and_get_their_colours():
    spans = pictures.coloured(ANSWER)
    assert "".join(span.text for span in spans if span.mark != "quiet") == TEXT
    assert [(span.text, span.background) for span in spans if span.background] == [
        ("dog", pictures.shade(0.5)),
        ("hot dog", pictures.shade(-1.0)),
    ]
    assert [span.text for span in spans if span.mark == "quiet"] == [" +0.5", " \N{MINUS SIGN}1.0"]


def test_the_sheet_shows_the_colours():
    sheet = np.array(pictures.words_sheet(REWARDED, "Title", "Legend."))
    for reward in (0.5, -1.0):
        colour = [int(pictures.shade(reward)[i : i + 2], 16) for i in (1, 3, 5)]
        assert (sheet == colour).all(axis=-1).sum() > 500


def test_the_histograms_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    made = rows(rng.normal(25, 3, 200), rng.normal(20, 3, 80))
    found = calibrate(made, "pseudo", 50)
    pictures.draw_calibration(made, found, lambda score: found.reward(score, "band", 0.0), tmp_path / "plots" / "c.png")
    drawn = np.array(Image.open(tmp_path / "plots" / "c.png").convert("RGB"))
    for reward in (-1, 0, 1):
        colour = [int(pictures.shade(reward)[i : i + 2], 16) for i in (1, 3, 5)]
        assert (drawn == colour).all(axis=-1).sum() > 500


def test_the_gallery_shows_the_colours_and_escapes_text():
    made = pictures.words_gallery(REWARDED, "Legend.")
    assert "A &lt;b&gt;" in made and "&lt;/b&gt; &amp; a " in made and "<b>dog" not in made
    assert f'style="background: {pictures.shade(-1.0)}">hot dog</mark>' in made
    assert "Legend." in made and made.count("<img") == 1


@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_images(count):
    assert pictures.words_sheet(REWARDED * count, "Title", "Legend.").width > 400
