from mlx_visalign.utils.formatting import counted, duration


def test_one_is_singular_and_thousands_can_be_read():
    assert [counted(count, "pair") for count in (0, 1, 2, 1200)] == ["0 pairs", "1 pair", "2 pairs", "1,200 pairs"]


def test_a_time_has_the_unit_that_suits_it():
    said = [duration(seconds) for seconds in (0.123, 1.04, 1.5, 90, 7300, 4e7)]
    assert said == ["0.12 seconds", "1 second", "1.5 seconds", "90 seconds", "2 hours", "460 days"]
