"""Definitions in YAML and JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from catalogue import actions, anything, check, delay, load, workflow
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.tasks.errors import DefinitionError
from trellis.tasks.retry import Retry
from trellis.workflows import files
from trellis.workflows.definition import Param, Workflow
from trellis.workflows.spec import Default

FLIGHTS = """\
name: flights
description: Delays of a year
params:
  url: {type: string}
  n: {type: integer, default: 3}
steps:
  rows:               # steps may come in any order
    action: check
    inputs:
      rows: ${steps.raw.rows}
    after: raw
    when: params.n > 2
    retry: 3
    timeout: 60
    on_failure: {default: false}
  raw:
    action: load
    inputs: {url: "${params.url}"}
  delays:
    action: delay
    inputs:
      month: ${item}
    map:
      over: ${steps.raw.months}
      concurrency: 4
"""

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    | st.sampled_from(
        ["no", "1e3", "0x1f", "010", "2013-01-01", "12:30", "~", "null", "<<", "=", "1_000", ".5"]
    )
    | st.sampled_from(
        ["${x}", "\x85", "a\u2028b", "\ufeffa", "a\rb", " ", "\t", "a\n", "\n\n a", "- a", "a: b", "#"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab <:{~1", max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


def flights() -> Workflow:
    wf = workflow("flights", params={"url": str, "n": Param(int, default=3)}, description="Delays of a year")
    raw = wf.step("raw", load, url=wf.params.url)
    wf.step("rows", check, rows=raw["rows"], after=raw, when="params.n > 2", retry=Retry(3), timeout=60,
            on_failure=Default(False))  # fmt: skip
    wf.map("delays", delay, over=raw["months"], concurrency=4, month=wf.item)
    return wf


def test_a_file_and_python_say_the_same() -> None:
    assert files.loads(FLIGHTS).digest() == flights().digest()


@settings(deadline=None)
@given(st.dictionaries(st.from_regex("[a-z]{1,4}", fullmatch=True), JSON, max_size=4))
def test_python_to_yaml_to_python_keeps_the_digest(inputs: dict[str, Any]) -> None:
    """And through JSON; whatever a text looks like to a YAML reader."""
    wf = workflow()
    wf.step("a", anything, inputs=inputs)

    for form in ("yaml", "json"):
        text = files.dump(wf.spec, form)  # type: ignore[arg-type]
        assert Workflow.from_spec(files.loads(text, form=form), catalogue=actions).digest() == wf.digest()  # type: ignore[arg-type]


@settings(deadline=None)
@given(JSON)
def test_what_is_written_reads_the_same_for_other_yaml_readers(value: Any) -> None:
    wf = workflow()
    wf.step("a", anything, value=value)

    read = yaml.safe_load(files.dump(wf.spec))["steps"]["a"]["inputs"]["value"]

    assert json.dumps(read) == json.dumps(wf.spec.steps["a"].inputs["value"])


def test_yaml_is_read_by_its_core_rules() -> None:
    text = "name: x\nsteps:\n  a:\n    action: anything\n    inputs:\n"
    lines = "a: no|b: 2013-01-01|c: 12:30|d: 1e3|e: 0x1F|f: ~|g: TRUE|h: 010|i: .5|j: 1_0"
    for line in re.split(r"\|", lines):
        text += f"      {line}\n"

    inputs = files.loads(text).steps["a"].inputs

    assert inputs == {
        "a": "no",
        "b": "2013-01-01",
        "c": "12:30",
        "d": 1000.0,
        "e": "0x1F",
        "f": None,
        "g": True,
        "h": 10,
        "i": 0.5,
        "j": "1_0",
    }


HEAD = """\
name: flights
params:
  url: {type: string}
steps:
  raw:
    action: load
    inputs:
      url: ${params.url}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + "    timout: 3\n",
            "f.yaml:9: step 'raw': timout: there is no such field; did you mean 'timeout'?",
        ),
        (
            HEAD + "    retry: 0\n",
            "f.yaml:9: step 'raw': retry.attempts: input should be greater than or equal to 1",
        ),
        (
            HEAD + "    retry: {attempt: 3}\n",
            "retry.attempt: there is no such field; did you mean 'attempts'?",
        ),
        (HEAD + "    on_failure: bla\n", "on_failure: is 'fail', 'skip' or {default: …}, not 'bla'"),
        (
            HEAD + "    on_failure: {defalt: 3}\n",
            "on_failure.defalt: there is no such field; did you mean 'default'?",
        ),
        (HEAD + "    timeout: soon\n", "f.yaml:9: step 'raw': timeout: input should be a valid number"),
        (
            HEAD + "    priority: 10\n",
            "f.yaml:9: step 'raw': priority: input should be less than or equal to 9",
        ),
        (HEAD + "    map: {ovr: []}\n", "map.ovr: there is no such field; did you mean 'over'?"),
        (
            HEAD + "  raw:\n    action: x\n",
            "f.yaml:9: 'raw' is given twice, first in line 5: remove or rename",
        ),
        (HEAD + "  x y:\n    action: x\n", "f.yaml:9: step 'x y': 'x y' is not a name"),
        (HEAD + "  z:\n    action: x\n    inputs: {url: ${params.url}}\n", "f.yaml:11: not YAML: "),
        (
            HEAD + "  z:\n    action: x\n    inputs: {url: ${params.url}}\n",
            'needs quotes: {url: "${params.url}"}',
        ),
        (HEAD + "  z: {<<: 1}\n", "f.yaml:9: merge keys (<<) are not read"),
        (HEAD.replace("name:", "nam:"), "f.yaml:1: nam: there is no such field; did you mean 'name'?"),
        ("- a\n", "f.yaml:1: a definition is an object with a name and steps, not list"),
        ("", "a definition is an object"),
        ("a: &a [*a]\n", "f.yaml:1: an alias stands inside its own anchor"),
        ("name: !!python/object/apply:os.system [ls]\n", "not "),
        ("name: !!timestamp 2013-01-01\n", "the tag 'tag:yaml.org,2002:timestamp' is not read"),
        ("? [a]\n: 1\n", "a key is a text"),
    ],
)
def test_mistakes_in_the_form_are_told_with_file_and_line(text: str, message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        files.loads(text, name="f.yaml")
    assert message in str(caught.value)


def test_every_mistake_is_told() -> None:
    with pytest.raises(DefinitionError) as caught:
        files.loads(HEAD + "    timout: 3\n    priority: x\n  b: {}\n", name="f.yaml")
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        "f.yaml:10",
        "f.yaml:9",
        "f.yaml:11",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"name": "x",\n "steps": {"a": {"actin": "load"}}}',
            "f.json:2: step 'a': actin: there is no such field",
        ),
        ('{"name": "x",\n "steps": {"a": {}, "a": {}}}', "f.json: the key 'a' is given twice in one object"),
        ('{"name": "x",\n "steps": ', "f.json:2: not JSON: "),
        ('{\t"name": 3}', "f.json"),
    ],
)
def test_mistakes_in_json_too(text: str, message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        files.loads(text, name="f.json", form="json")
    assert message in str(caught.value)


def test_few_lines_cannot_stand_for_a_billion_values() -> None:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{','.join(['*' + before] * 10)}]")

    with pytest.raises(DefinitionError, match="its aliases stand for more than"):
        files.loads("\n".join(lines))


def test_files_on_disk(tmp_path: Path) -> None:
    good = tmp_path / "flights.yaml"
    good.write_text(FLIGHTS)
    as_json = tmp_path / "flights.json"
    as_json.write_text(files.dump(flights().spec, "json"))
    bad = tmp_path / "bad.yaml"
    bad.write_text(FLIGHTS.replace("${steps.raw.rows}", "${steps.raw.rosw}"))

    assert files.workflow(good, catalogue=actions).digest() == flights().digest()
    assert files.load(as_json).digest() == flights().digest()
    with pytest.raises(DefinitionError) as caught:
        files.workflow(bad, catalogue=actions)
    assert str(caught.value).startswith(f"{bad}:7: workflow 'flights', step 'rows': input 'rows' refers to")
    assert caught.value.step == "rows"
    with pytest.raises(DefinitionError, match="cannot be read: No such file"):
        files.load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe4\n")
    with pytest.raises(DefinitionError, match="not UTF-8"):
        files.load(tmp_path / "latin.yaml")


def test_the_published_schema_fits_what_is_read() -> None:
    schema = files.schema()
    jsonschema.Draft202012Validator.check_schema(schema)

    jsonschema.validate(yaml.safe_load(FLIGHTS), schema)
    jsonschema.validate(json.loads(flights().spec.canonical()), schema)
    for text in ("    timout: 3\n", "    retry: 0\n", "    on_failure: bla\n", "  x y:\n    action: x\n"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(HEAD + text), schema)


def test_the_published_schema_describes_every_field_of_ours() -> None:
    schema = files.schema()

    assert schema["$id"]
    assert schema["title"] == "Trellis workflow"
    for model in (schema, *(schema["$defs"][name] for name in ("StepSpec", "MapSpec", "Default"))):
        for name, field in model["properties"].items():
            assert field.get("description"), name
