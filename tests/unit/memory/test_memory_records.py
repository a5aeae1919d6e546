"""Records of files: what each field takes, and that a refusal names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trellis.memory.readers import JsonLines, Position
from trellis.memory.records import FIELDS, Target, parse
from trellis.tasks.errors import EntryError, ValueTooLarge

TARGET = Target("model", 64, 1_000_000)

BAD: list[tuple[Any, str]] = [
    ("{", "record"),
    ("[1]", "record"),
    ('{"value": "\\ud800"}', "record"),
    ('{"value": NaN}', "record"),
    ({"key": "k"}, "value"),
    ({"value": "a\0"}, "value"),
    ({"value": {"a": ["\0"]}}, "value.a"),
    ({"value": "x" * 1_100_000, "text": "short"}, "value"),
    ({"value": 1, "key": ""}, "key"),
    ({"value": 1, "key": 5}, "key"),
    ({"value": 1, "kee": "k"}, "kee"),
    ({"value": 1, "kind": "dream"}, "kind"),
    ({"value": 1, "seq": 1}, "seq"),
    ({"value": 1, "kind": "episode"}, "episode"),
    ({"value": 1, "episode": "e", "seq": -1}, "seq"),
    ({"value": 1, "importance": 2}, "importance"),
    ({"value": 1, "source": "recalled"}, "source"),
    ({"value": 1, "trust": 4}, "trust"),
    ({"value": 1, "at": "yesterday"}, "at"),
    ({"value": 1, "run_id": "x"}, "run"),
    ({"value": 1, "metadata": []}, "metadata"),
    ({"value": 1, "embedding": [1, 2]}, "embedding"),
    ({"value": 1, "embedding": [0] * 64}, "embedding"),
    ({"value": 1, "embedding": "x"}, "embedding"),
    ({"value": 1, "embedding": [1e200] * 64}, "embedding"),
]


def lines(path: Path, *lines: Any) -> JsonLines:
    texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())
    return JsonLines(path)


@pytest.mark.parametrize(("record", "field"), BAD, ids=lambda each: each if isinstance(each, str) else "")
def test_what_cannot_be_taken_is_refused_with_its_field(tmp_path: Path, record: Any, field: str) -> None:
    [row] = lines(tmp_path / "a.jsonl", record).rows(Position(), TARGET)
    assert row.record is None
    assert isinstance(row.wrong, EntryError | ValueTooLarge)
    assert (getattr(row.wrong, "field", None) or getattr(row.wrong, "what", None)) == field


def test_every_field_is_told_where_one_is_misspelt_beyond_recognition() -> None:
    with pytest.raises(EntryError) as refused:
        parse({"value": 1, "zzz": 1}, TARGET)
    assert all(name in str(refused.value) for name in FIELDS)


def test_a_reader_goes_on_at_any_position_behind_a_row(tmp_path: Path) -> None:
    """With a byte order mark, empty lines, other line ends and a last line without one."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"value": "\xc3\xbc"}\r\n\n{"value": 2}\n  \n{"value": 3}')
    source = JsonLines(path)
    whole = list(source.rows(Position(), TARGET))
    assert [row.line for row in whole] == [1, 3, 5]
    assert whole[-1].end.offset == source.size
    for number, row in enumerate(whole):
        rest = list(source.rows(row.end, TARGET))
        assert [(each.line, each.end) for each in rest] == [
            (each.line, each.end) for each in whole[number + 1 :]
        ]


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    first, same, other = (
        lines(tmp_path / name, {"value": value}) for name, value in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first.identity == same.identity != other.identity


def test_the_same_content_has_the_same_key_without_one() -> None:
    keys = [parse({"value": value}, TARGET).draft.key for value in ("Tea", "tea ", "coffee")]
    assert keys[0] == keys[1] != keys[2]
    places: list[dict[str, Any]] = [
        {"episode": "e", "seq": 1},
        {"episode": "e", "seq": 2},
        {"episode": "other", "seq": 1},
        {"episode": "e", "at": "2026-01-01"},
        {"episode": "e"},
    ]
    first, second = (
        [parse({**each, "value": "tea"}, TARGET, 7).draft.key for each in places] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == len(places)
    assert parse({"episode": "e", "value": "tea"}, TARGET, 8).draft.key not in first


def test_a_vector_is_at_length_one_and_one_that_is_stays_as_it_is() -> None:
    rough = np.zeros(64)
    rough[:2] = 0.70703125  # the half that is nearest to the root of a half
    taken = parse({"value": "a", "embedding": rough}, TARGET).vector
    assert taken is not None
    assert (taken == rough).all()
    long = parse({"value": "a", "embedding": [3.0] * 64}, TARGET).vector
    assert long is not None
    assert np.linalg.norm(long) == pytest.approx(1)
