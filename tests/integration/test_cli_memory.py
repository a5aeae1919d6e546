"""`trellis memory` as a person and as a script use it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from endpoints import Endpoint, completion, quoted
from forks import ran
from stack import Stack

from trellis.workflows import distilling, reembedding


class Shell:
    """Commands in a user's folder."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.folder = folder
        self.env = stack.environment(
            TRELLIS_IMPORTS="", PYTHONPATH=str(folder), COLUMNS="200", TRELLIS_EMBEDDER="hashing:64"
        )

    def __call__(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return ran(["trellis", "memory", *arguments], self.folder, {**self.env, **env})

    def json(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def shell(stack: Stack, tmp_path: Path) -> Shell:
    return Shell(stack, tmp_path)


def test_a_memory_is_stored_found_shown_and_forgotten(shell: Shell) -> None:
    assert (
        shell("store", "tea", "Ann likes green tea", "--actor", "Ann", "-m", "lang=en").stdout
        == "tea added\n"
    )
    assert "linked to another key" in shell("store", "copy", "ann likes  GREEN tea").stdout
    assert [each["value"] for each in shell.json("get", "copy", "--history")] == ["ann likes  GREEN tea"]
    assert shell.json("store", "home", '{"city": "Oslo"}', "--data", "--source", "web")["outcome"] == "added"
    assert shell.json("store", "home", '{"city": "Rome"}', "--data", "--ttl", "2d")["outcome"] == "replaced"
    for text in ("We met at the harbour", "and had some tea there"):
        assert shell("store", "talk", text, "--episode").stdout == "an entry of talk added\n"
    assert shell.json("get", "home")["value"] == {"city": "Rome"}
    assert [each["value"] for each in shell.json("get", "home", "--history")] == [
        {"city": "Oslo"},
        {"city": "Rome"},
    ]
    shown = shell("get", "tea").stdout
    assert all(word in shown for word in ("Ann likes green tea", "2 (usual)", '{"lang": "en"}'))
    hits = shell.json("search", "who had tea?", "-n", "2")
    assert {hit["key"] if hit["kind"] == "fact" else hit["episode"] for hit in hits} == {"tea", "talk"}
    parts = ("text", "dense", "recency", "importance", "trust")
    assert all(hit["score"] == pytest.approx(sum(hit["parts"][part] for part in parts)) for hit in hits)
    facts = shell.json("search", "tea", "--kind", "fact", "-m", "lang=en")
    assert [each["key"] for each in facts] == ["tea"]
    head, first, *_ = shell("search", "who had tea?").stdout.splitlines()
    assert head.split() == [
        "score",
        "words",
        "meaning",
        "recent",
        "import.",
        "trust",
        "key",
        "text",
        "source",
        "when",
    ]
    assert "#1" in first
    last, _ = shell.json("recent", "--episode", "talk")
    assert last["text"] == "and had some tea there"
    assert shell("forget", "home").stdout == "2 memories forgotten\n"
    assert shell.json("forget", "--episode", "talk", "--yes") == {"forgotten": 2}
    found = shell.json("stats")
    assert [(row["kind"], row["live"]) for row in found["rows"]] == [("fact", 1)]
    assert (found["links"], found["hits"] > 0, found["sizes"][0]["model"]) == (1, True, "hashing-64")
    assert "vector index" in shell("stats").stdout


def test_a_slip_is_one_line_that_says_what_was_meant(shell: Shell) -> None:
    shell("store", "breakfast", "tea", "--agent", "planner")
    slips = [
        (("get", "brekfast", "--agent", "planner"), "did you mean 'breakfast'?"),
        (("forget", "brekfast", "--agent", "planner"), "did you mean 'breakfast'?"),
        (("get", "breakfast", "--agent", "planer"), "did you mean --agent planner?"),
        (("forget",), "give a key"),
        (("forget", "--source", "web"), "--yes"),
        (("store", "k", "v", "--importance", "2"), "importance: is 2.0: needs a number from 0 to 1"),
        (("store", "k", "{", "--data"), "value: is no JSON"),
        (("store", "k", "v", "--ttl", "soon"), "'soon' is no time span"),
        (("store", "k", "v", "-m", "x"), "'x' is no KEY=VALUE"),
        (("search", "tea", "--since", "yore"), "'yore' is neither a time"),
        (("import", "fact.jsonl"), "did you mean 'facts.jsonl'?"),
        (("import", "facts.csv"), "say --format"),
        (("export", "facts.csv"), "say --format"),
        (("export", "--format", "parquet"), "goes to a file"),
    ]
    (shell.folder / "facts.csv").write_text("")
    (shell.folder / "facts.jsonl").write_text("")
    for arguments, told in slips:
        done = shell(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), (arguments, done)
        [line] = done.stderr.splitlines()
        assert told in line, line
    done = shell("search", "tea", "--agent", "planer")
    assert (done.returncode, done.stdout, "did you mean --agent planner?" in done.stderr) == (0, "", True)


def test_a_search_with_another_embedder_says_why_it_finds_nothing(shell: Shell) -> None:
    shell("store", "k", "tea")
    done = shell("search", "tea", TRELLIS_EMBEDDER="hashing:32")
    assert (done.returncode, done.stdout) == (0, "")
    assert "vectors of hashing-64" in done.stderr
    assert "trellis memory reindex" in done.stderr


def test_files_go_in_and_out(shell: Shell) -> None:
    lines = [{"key": f"k{n}", "value": f"fact {n} of {n * 7919}"} for n in range(3)]
    path = shell.folder / "facts.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in (*lines, {"value": 1, "trust": 9})))
    refused = shell("import", "facts.jsonl")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "facts.jsonl, line 4: trust" in refused.stderr
    done = shell("import", "facts.jsonl", "--skip-bad")
    assert done.stdout == "4 rows: 3 added, 1 bad\n"
    assert "facts.jsonl.rejects.jsonl" in done.stderr
    assert "--again" in shell("import", "facts.jsonl").stderr
    assert shell.json("import", "facts.jsonl", "--again", "--skip-bad")["same"] == 3
    out = [json.loads(line) for line in shell("export").stdout.splitlines()]
    assert sorted(each["key"] for each in out) == ["k0", "k1", "k2"]
    assert shell("export", "all.parquet", "--vectors").stdout == "3 memories in all.parquet\n"
    assert shell("import", "all.parquet", "--tenant", "other").stdout == "3 rows: 3 added\n"
    assert shell("export", "ALL.PARQUET").stdout == "3 memories in ALL.PARQUET\n"
    assert shell("import", "ALL.PARQUET", "--tenant", "third").stdout == "3 rows: 3 added\n"


def test_reindex_starts_one_durable_run(stack: Stack, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is none is refused before; what workers need not know is told."""
    shell("store", "k", "tea")
    wrong = shell("reindex", "--model", "hashin:32")
    assert (wrong.returncode, wrong.stdout, "hashing" in wrong.stderr) == (2, "", True)
    started = shell("reindex", "--model", "hashing:32")
    assert "TRELLIS_EMBEDDER=hashing:32" in started.stderr
    run = started.stdout.strip()
    assert shell("reindex", "--model", "hashing:32").stdout.strip() == run
    monkeypatch.setattr(reembedding, "current", lambda: stack.settings)
    stack.drain(run)
    assert stack.client.get(run).state == "succeeded"
    assert shell.json("stats")["rows"][0]["model"] == "hashing-32"
    moved = shell("search", "tea")
    assert (moved.returncode, moved.stdout) == (2, "")
    assert "have vectors of 'hashing-32' now" in moved.stderr
    found = shell("search", "tea", "--json", TRELLIS_EMBEDDER="hashing:32")
    assert [hit["key"] for hit in json.loads(found.stdout)] == ["k"]


def test_distill_starts_one_durable_run(stack: Stack, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off until a model is chosen; what is wrong with the choice is told before a run is started."""
    shell("store", "talk", "I drink tea", "--episode", "--agent", "ann")
    for llm, told in ((None, "TRELLIS_LLM is not set"), ("openia:m", "did you mean 'openai'")):
        wrong = shell("distill", "--agent", "ann", **({} if llm is None else {"TRELLIS_LLM": llm}))
        assert (wrong.returncode, wrong.stdout, len(wrong.stderr.splitlines())) == (2, "", 1)
        assert told in wrong.stderr
    assert stack.client.count() == 0

    def mind(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        [turn] = quoted(body)["turns"]
        fact = {
            "turns": [1],
            "about": "Ann",
            "what": "drink",
            "fact": f"Ann says: {turn['text']}",
            "worth": "high",
        }
        return 200, {}, completion(json.dumps({"facts": [fact]}))

    endpoint = Endpoint(mind)
    chosen = {"TRELLIS_LLM": "openai:m", "TRELLIS_LLM_URL": endpoint.url}
    run = shell("distill", "--agent", "ann", **chosen).stdout.strip()
    again = shell("distill", "--agent", "ann", "--calls", "3", **chosen)
    assert (again.stdout.strip(), "with other options" in again.stderr) == (run, True)
    settings = stack.with_settings(embedder="hashing:64", llm="openai:m", llm_url=endpoint.url)
    monkeypatch.setattr(distilling, "current", lambda: settings)
    stack.drain(run)
    endpoint.close()
    [fact] = shell.json("search", "tea", "--kind", "fact", "--agent", "ann", "--run", run)
    assert (fact["key"], fact["value"], fact["source"]) == (
        "distilled/ann/drink",
        "Ann says: I drink tea",
        "agent",
    )
    assert shell("forget", "--run", run, "--agent", "ann", "--yes").stdout == "1 memory forgotten\n"
