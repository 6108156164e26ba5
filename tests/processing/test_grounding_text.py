import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.processing.grounding_text import box_to_text, check_box, clipped_box, text_to_box


def test_as_it_is_spoken():
    assert box_to_text([0, 0, 640, 480], 640, 480) == "[0,0,999,999]"
    assert box_to_text([16, 12, 16, 24], 48, 48) == "[333,250,666,749]"
    assert text_to_box("[0,0,999,999]", 640, 480) == [0, 0, 640, 480]


@st.composite
def boxes(draw):
    width, height = draw(st.integers(1, 8000)), draw(st.integers(1, 8000))
    x, y = draw(st.floats(0, width - 0.5)), draw(st.floats(0, height - 0.5))
    w, h = draw(st.floats(0.01, width - x)), draw(st.floats(0.01, height - y))
    return [x, y, w, h], width, height


@given(boxes())
def test_the_round_trip_moves_a_corner_by_at_most_half_a_step(sample):
    box, width, height = sample
    back = text_to_box(box_to_text(box, width, height), width, height)
    step_x, step_y = width / 999, height / 999
    for got, true, step in (
        (back[0], box[0], step_x),
        (back[1], box[1], step_y),
        (back[0] + back[2], box[0] + box[2], step_x),
        (back[1] + back[3], box[1] + box[3], step_y),
    ):
        assert abs(got - true) <= step / 2 + 1e-6


@pytest.mark.parametrize(
    "text",
    [
        "[100,200,300,400]",
        "[ 100 , 200 , 300 , 400 ]",
        "[ 1 0 0 , 2 0 0 , 3 0 0 , 4 0 0 ]",
        "100, 200, 300, 400",
        "100 200 300 400",
        "(100, 200, 300, 400)",
        "[300,400,100,200]",
        "[300,200,100,400]",
        "The box is [100, 200, 300, 400].",
        "there are 2 dogs, 3 cats, 1 ball, 5 birds : [100,200,300,400] </s>",
        "x1=100 y1=200 x2=300 y2=400",
        "[100.0, 200.0, 300.0, 400.0]",
        "[100,200,300,400],[500,600,700,800]",
        "[100,200,300,400",
        "box - 100, 200, 300, 400",
    ],
)
def test_many_ways_to_write_a_box(text):
    assert text_to_box(text, 999, 999) == pytest.approx([100, 200, 200, 200])


def test_fractions_and_slight_overshoot():
    assert text_to_box("[0.1, 0.2, 0.5, 1.0]", 100, 100) == pytest.approx([10, 20, 40, 80])
    assert text_to_box("[0, 0, 1, 1]", 999, 999) == pytest.approx([0, 0, 1, 1])  # whole numbers are steps
    assert text_to_box("[-3, 0, 1000, 999]", 50, 60) == pytest.approx([0, 0, 50, 60])


@pytest.mark.parametrize("text", ["", "no box", "[1,2,3]", "12 34 56", "[100,200,300,4000]", "x1 y1 x2 y2", "[,,,]"])
def test_what_is_no_box(text):
    assert text_to_box(text, 100, 100) is None


@given(st.text(alphabet="0123456789 ,.-[]()abx=\n", max_size=60))
def test_any_text_gives_a_box_inside_the_image_or_none(text):
    box = text_to_box(text, 64, 48)
    if box is not None:
        x, y, w, h = box
        assert 0 <= x <= x + w <= 64 + 1e-6 and 0 <= y <= y + h <= 48 + 1e-6


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([10, 10, 100, 10], "reaches outside the 64×48 image"),
        ([-2, 0, 10, 10], "reaches outside"),
        ([0, 0, 0, 10], "has no area"),
        ([0, 0, float("nan"), 10], "four finite numbers"),
        ([0, 0, 10], "four finite numbers"),
    ],
)
def test_boxes_that_cannot_be_spoken(box, words):
    with pytest.raises(ValueError, match="bbox=") as caught:
        box_to_text(box, 64, 48)
    assert words in str(caught.value)


def test_tolerances_are_half_a_pixel_two_pixels_and_two_per_cent():
    for box in ([-0.5, 0, 10, 10], [0, -0.5, 10, 10], [54, 0, 10.5, 10], [0, 38, 10, 10.5]):
        check_box(box, 64, 48)
    for box in ([-0.6, 0, 10, 10], [0, -0.6, 10, 10], [54, 0, 10.6, 10], [0, 38, 10, 10.6]):
        with pytest.raises(ValueError, match="reaches outside the 64×48 image"):
            check_box(box, 64, 48)
    assert clipped_box([-2, -1, 10, 10], 64, 48) == [0, 0, 8, 9]
    assert clipped_box([60, 44, 6, 6], 64, 48) == [60, 44, 4, 4]
    for box in ([-2.1, 0, 10, 10], [60, 0, 6.1, 10], [0, 44, 10, 6.1]):
        with pytest.raises(ValueError, match="reaches outside"):
            clipped_box(box, 64, 48)
    assert text_to_box("[-19, 0, 1018, 999]", 100, 100) == [0, 0, 100, 100]
    assert text_to_box("[0, 0, 1020, 999]", 100, 100) is None and text_to_box("[-21, 0, 9, 9]", 100, 100) is None
