"""What texts become on their way to Postgres. No database is asked; test_memory_isolation.py does that."""

import pytest

from trellis.memory.texts import array_of


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
