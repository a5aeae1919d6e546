"""What counts as recalled: pure."""

from __future__ import annotations

from typing import Any

import pytest

from trellis.memory.drafts import Options, draft
from trellis.memory.recalled import FACT, LINES, asked, kept, lines_of, recalled
from trellis.memory.texts import hash_of

KNOWN = {
    hash_of("Ann likes tea"): {FACT},
    hash_of("Bob likes jazz"): {"user"},
    hash_of("thank you"): {"user"},
}


@pytest.mark.parametrize(
    ("text", "is_recalled"),
    [
        ("Ann likes tea\nBob likes jazz", True),
        ("- ann LIKES tea\n\n  2) Bob  likes jazz\n", True),
        ("Ann likes tea\nBob likes jazz\nCy likes rain", False),
        ("Ann likes tea", False),
        ("Ann likes tea\nann likes tea", False),  # one thing, said twice
        ("", False),
        ("\n\n", False),
    ],
)
def test_a_list_is_recalled_if_each_of_its_lines_is_known(text: str, is_recalled: bool) -> None:
    assert recalled(lines_of(text), KNOWN) is is_recalled


def test_too_long_a_list_is_not_looked_up() -> None:
    assert len(lines_of("\n".join(f"line {n}" for n in range(LINES)))) == LINES
    assert lines_of("\n".join(f"line {n}" for n in range(LINES + 1))) == []


def test_what_one_text_adds_the_next_may_have_recalled() -> None:
    texts = [
        "Cy likes rain",
        "Cy likes rain\nAnn likes tea",
        "Dee likes maps\nAnn likes tea",
        "Dee likes maps",
    ]
    marked = Options(source="recalled")
    drafts = [draft("k", text, 1_000, None, Options()) for text in texts]
    drafts.append(draft("k", "Eve likes chess", 1_000, None, marked))
    drafts.append(draft("k", "Eve likes chess\nAnn likes tea", 1_000, None, Options()))
    assert kept(drafts, KNOWN) == [True, False, True, True, False, True]


@pytest.mark.parametrize(
    ("text", "source", "is_kept"),
    [
        ("ann LIKES tea", "agent", False),
        ("- Bob likes jazz.", "tool", False),
        ("Ann likes tea", "user", True),  # people say a thing twice
        ("Bob likes jazz", "web", True),
        ("Thank you", "agent", True),
        ("Cy likes rain", "agent", True),
    ],
)
def test_a_sentence_of_others_is_recalled_where_an_agent_says_it(
    text: str, source: Any, is_kept: bool
) -> None:
    one = draft("k", text, 1_000, None, Options(source=source))
    assert (hash_of("Ann likes tea") in asked([one])) == (text == "ann LIKES tea")
    assert kept([one], KNOWN) == [is_kept]


def test_an_agent_may_say_again_what_it_said_itself() -> None:
    """But not what a person said in the same call."""
    said: list[tuple[str, Any]] = [
        ("the table is laid", "agent"), ("the table is laid", "agent"), ("we eat at nine", "user"),
        ("we eat at nine", "user"), ("We eat at nine!", "agent"), ("the table is laid", "user"),
        ("the table is laid", "agent"),
    ]  # fmt: skip
    drafts = [draft("k", text, 1_000, None, Options(source=source)) for text, source in said]
    assert kept(drafts, {}) == [True, True, True, True, False, True, False]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ann likes tea", "  ANN likes\ttea.", True),
        ("Ann likes tea", "Ann likes tea!!", True),
        ("Ann likes tea", "\u201cAnn likes tea.\u201d", True),
        ("Ann likes tea", "'Ann likes tea' …", True),
        ("Ann likes tea", "Ann likes tea?", False),
        ("Ann is 6' tall", 'Ann is 6" tall', False),
        ("6'", '6"', False),
        ("-5", "5", False),
        ("3.5", "35", False),
        ("...", "!", False),
        ("", "...", False),
    ],
)
def test_marks_around_a_text_do_not_make_it_another(one: str, other: str, same: bool) -> None:
    assert (hash_of(one) == hash_of(other)) is same
