"""The checks of the assignments: a right answer is right however it is written, a wrong one is told its own mistake."""

import pytest
from assignments import NAMES, answers, grade, solution

RIGHT = [pytest.param(name, answer, id=f"{name}-{answer.__name__}") for name in NAMES for answer in answers(name)[0]]


@pytest.mark.parametrize("name, answer", [*RIGHT, *((name, solution(name)) for name in NAMES)])
def test_right_answers_get_full_marks(name, answer):
    assert grade(name, answer) == (10, [])


@pytest.mark.parametrize("name", NAMES)
def test_wrong_answers_lose_marks_and_are_told_why(name):
    """The first check that fails names the mistake, and none of the others; students see most of them fail."""
    right, wrong = answers(name)
    hidden = 0
    for words, answer in wrong.items():
        points, failed = grade(name, answer)
        assert points < 10, words
        told = [w for w in wrong if w in failed[0][0]]
        assert told == [words], f"{words}: it was told {failed[0][0]!r}"
        hidden += not any(visible for _, visible in failed)
    assert len(right) >= 5 and len(wrong) >= 8 and hidden <= len(wrong) / 4
