"""What texts become on their way to Postgres. No database is asked; test_memory_isolation.py does that."""

import pytest

from trellis.memory.texts import alike, array_of, restated


@pytest.mark.parametrize(
    ("texts", "written"),
    [
        ([], "{}"),
        (["ann", ""], '{"ann",""}'),
        (["a,b", "{c}", "NULL"], '{"a,b","{c}","NULL"}'),
        (
            ['say "hi"', "back\\slash", "'; DROP TABLE memory; --"],
            r'{"say \"hi\"","back\\slash","' + "'; DROP TABLE memory; --" + '"}',
        ),
    ],
)
def test_an_array_of_texts_has_each_text_as_it_is(texts: list[str], written: str) -> None:
    assert array_of(texts) == written


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ann plays the cello", "Note: Ann plays the cello!", True),
        ("Ann plays the cello", "I know that Ann plays a cello, indeed", True),
        ("Ann plays the cello", "So, as I said: it is true that Ann plays the cello", True),
        ("Ann plays the cello", "Bob said that Ann plays the cello", False),
        ("we know Ann", "Ann", True),
        ("Ann remembers", "Ann", False),
        ("Ann plays the cello", "Ann played the cello", False),
        ("Ann left the bank in May", "Ann left the bank in June", False),
        ("Ann lent Bob the bike", "Bob lent Ann the bike", False),
        ("Ann is ill", "I know that Ann is not ill", False),
        ("the", "a", False),
    ],
)
def test_words_that_say_nothing_make_no_other_fact(one: str, other: str, same: bool) -> None:
    assert restated(one, other) is restated(other, one) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ann is fond of tea", "Ann likes tea", True),
        ("the tea costs 10", "the tea costs 11", False),
        ("Ann is ill", "Ann isn't ill", False),
        ("Ann lent Bob the bike", "Bob lent Ann the bike", False),
    ],
)
def test_what_a_model_cannot_tell_apart_is_told_by_words(one: str, other: str, same: bool) -> None:
    """The model found each of these pairs near; who has it see no difference would lose a fact."""
    assert alike(one, other) is alike(other, one) is same
