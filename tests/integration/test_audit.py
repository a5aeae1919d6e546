"""The audit log: append-only by the database, sealed without holding writers up; what was tampered with is named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime

import psycopg
import pytest
from stack import Stack

from trellis.memory.actions import AuditAction, Outcome
from trellis.memory.audit import BATCH, AuditLog, Entry, record
from trellis.memory.history import Filter, History
from trellis.memory.seals import Kind
from trellis.tasks.database import Database
from trellis.tasks.errors import ConfigurationError, ParameterError, StateError

KEYS = {"2026": b"a secret of the tests"}


@pytest.fixture
def database(stack: Stack) -> Iterator[Database]:
    made = Database(stack.database_url, stack.settings)
    yield made
    made.close()


@pytest.fixture
def log(database: Database) -> AuditLog:
    return AuditLog(database, KEYS)


def write(database: Database, count: int, **more: str) -> None:
    with database.transaction() as connection:
        record(connection, *(Entry(AuditAction.RUN_STARTED, f"run:{n}", **more) for n in range(count)))


def tamper(stack: Stack, statement: str) -> None:
    """What somebody does who owns the tables."""
    with stack.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(statement.encode())


def test_a_row_is_there_with_what_it_records_or_not_at_all(database: Database, stack: Stack) -> None:
    with suppress(ZeroDivisionError), database.transaction() as connection:
        record(connection, Entry(AuditAction.RUN_CANCELLED, "run:1"))
        raise ZeroDivisionError
    assert stack.rows("SELECT count(*) FROM audit_log") == [(0,)]


def test_secrets_and_what_postgres_cannot_keep_are_taken_out(database: Database, stack: Stack) -> None:
    detail = {"password": "hunter2", "url": "redis://u:hunter2@h/0", "nul": "a\0b", "lone": "\ud800"}
    entry = Entry(AuditAction.SETTING_CHANGED, "a\0b", Outcome.REFUSED, actor="\ud800", detail=detail)
    with database.transaction() as connection:
        record(connection, entry)
    [(target, actor, kept)] = stack.rows("SELECT target, actor, detail FROM audit_log")
    assert (target, actor) == ("a\\x00b", "\\ud800")
    assert "hunter2" not in str(kept)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
        "DELETE FROM audit_seal",
        "UPDATE audit_seal SET mac = ''",
    ],
)
def test_the_database_refuses_every_change(
    statement: str, log: AuditLog, database: Database, stack: Stack
) -> None:
    write(database, 1)
    log.seal()
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        stack.rows(statement)
    name = stack.rows("SELECT tableoid::regclass::text FROM audit_log")[0][0]
    for directly in (f"TRUNCATE {name}", f"UPDATE {name} SET actor = 'nobody'", f"DELETE FROM {name}"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            stack.rows(directly)


def test_what_is_sealed_verifies_and_the_rest_is_counted(log: AuditLog, database: Database) -> None:
    write(database, BATCH + 7)
    assert log.seal() == BATCH + 7
    write(database, 3)
    found = log.verify()
    assert (found.rows, found.seals, found.unsealed, found.findings) == (BATCH + 7, 2, 3, ())


def test_rows_are_sealed_in_the_order_of_numbers_and_not_of_texts(log: AuditLog, stack: Stack) -> None:
    for tx in (10, 9):
        stack.rows(
            f"INSERT INTO audit_log (tx, actor, action, outcome) VALUES ('{tx}', 'a', 'run.started', 'done')"
        )
    assert log.seal() == 2
    assert log.verify().findings == ()


def test_a_writer_that_is_open_for_long_is_sealed_when_it_is_over(log: AuditLog, database: Database) -> None:
    """Its rows have earlier ids than rows that are committed; sealing waits for nobody, and misses nothing."""
    with database.transaction() as slow:
        record(slow, Entry(AuditAction.RUN_STARTED, "run:slow"))
        write(database, 5)
        assert log.seal() == 0
    assert log.seal() == 6
    assert log.verify().findings == ()


CHANGES: dict[str, tuple[str, Kind]] = {
    "changed": ("UPDATE audit_log SET actor = 'nobody' WHERE id = 4", Kind.CHANGED),
    "its time changed": ("UPDATE audit_log SET at = at - interval '1 second' WHERE id = 4", Kind.CHANGED),
    "removed": ("DELETE FROM audit_log WHERE id = 4", Kind.REMOVED),
    "inserted": (
        "INSERT INTO audit_log (id, at, tx, actor, action, outcome) OVERRIDING SYSTEM VALUE "
        "SELECT 4000, at, tx, actor, action, outcome FROM audit_log WHERE id = 4",
        Kind.INSERTED,
    ),
    "doubled": (
        "INSERT INTO audit_log (id, at, tx, actor, action, outcome, target) OVERRIDING SYSTEM VALUE "
        "SELECT id, at, tx, actor, action, outcome, target FROM audit_log WHERE id = 4",
        Kind.INSERTED,
    ),
    "moved": ("UPDATE audit_log SET tx = '99999999' WHERE id = 4", Kind.REORDERED),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_was_tampered_with_is_named(
    change: str, log: AuditLog, database: Database, stack: Stack
) -> None:
    write(database, 10)
    log.seal()
    statement, kind = CHANGES[change]
    tamper(stack, statement)
    found = log.verify().findings
    assert kind in {each.kind for each in found}
    assert {4, 4000} & {each.row for each in found}


SEALS: dict[str, Callable[[str], str]] = {
    "a seal was removed": lambda _: "DELETE FROM audit_seal WHERE seq = 2",
    "a seal was changed": lambda _: "UPDATE audit_seal SET digests = digests || 'x' WHERE seq = 2",
    "the last seal and its rows were cut off": lambda _: (
        "WITH gone AS (DELETE FROM audit_seal WHERE seq = 3 RETURNING ids) "
        "DELETE FROM audit_log WHERE id IN (SELECT unnest(ids) FROM gone)"
    ),
}


@pytest.mark.parametrize("change", SEALS)
def test_a_seal_that_was_tampered_with_is_named(
    change: str, log: AuditLog, database: Database, stack: Stack
) -> None:
    for _ in range(3):
        write(database, 2)
        log.seal()
    head = log.verify().head
    tamper(stack, SEALS[change](""))
    assert Kind.SEAL in {each.kind for each in log.verify(head).findings}


def test_keys_are_rotated_and_old_seals_still_verify(log: AuditLog, database: Database) -> None:
    write(database, 2)
    log.seal()
    both = AuditLog(database, {"2027": b"a new secret", **KEYS})
    write(database, 2)
    both.seal()
    assert both.verify().findings == ()
    [finding] = log.verify().findings
    assert "2027" in finding.what


def test_whoever_has_another_key_cannot_make_a_log_that_verifies(log: AuditLog, database: Database) -> None:
    write(database, 2)
    AuditLog(database, {"2026": b"guessed"}).seal()
    assert log.verify().findings


def test_without_a_key_nothing_is_sealed_and_the_error_says_what_to_set(database: Database) -> None:
    with pytest.raises(ConfigurationError, match="TRELLIS_AUDIT_KEYS"):
        AuditLog(database, {}).seal()


def test_sealers_at_once_seal_every_row_once(log: AuditLog, database: Database) -> None:
    write(database, 50)
    threads = [threading.Thread(target=log.seal) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.seal()
    found = log.verify()
    assert (found.rows, found.unsealed, found.findings) == (50, 0, ())


def test_a_log_that_was_restored_into_another_cluster_goes_on(
    log: AuditLog, database: Database, stack: Stack
) -> None:
    """There transactions have lower numbers. Here the log is told of higher ones than it will come to."""
    write(database, 3)
    tamper(
        stack,
        "CREATE OR REPLACE FUNCTION audit_done() RETURNS xid8 LANGUAGE sql AS $$ SELECT '9000000'::xid8 $$",
    )
    assert log.seal() == 3
    tamper(
        stack,
        "CREATE OR REPLACE FUNCTION audit_done() RETURNS xid8 LANGUAGE sql STABLE AS "
        "$$ SELECT pg_snapshot_xmin(pg_current_snapshot()) $$",
    )
    with pytest.raises(StateError, match="trellis audit rebase"):
        log.seal()
    assert log.rebase()
    assert not log.rebase()
    write(database, 2)
    assert log.seal() == 3  # and the row that says so
    found = log.verify()
    assert (found.rows, found.unsealed, found.findings) == (6, 0, ())


def test_a_month_is_detached_once_it_is_over_and_sealed(
    log: AuditLog, database: Database, stack: Stack
) -> None:
    stack.rows("SELECT audit_partition('2026-01-01')")
    with database.transaction() as connection:
        for _ in range(3):
            connection.execute(
                "INSERT INTO audit_log (at, actor, action, outcome) VALUES ('2026-01-15', 'ann', 'run.started', 'done')"
            )
    write(database, 2)
    january = date(2026, 1, 1)
    with pytest.raises(StateError, match="3 rows of 2026-01 are not sealed"):
        log.retire(january)
    log.seal()
    assert log.retire(january) == "audit_log_2026_01"
    assert stack.rows("SELECT count(*) FROM audit_log_2026_01") == [(3,)]
    log.seal()
    found = log.verify()
    assert (found.rows, found.findings) == (3, ())  # the two, and the row that says what was retired
    assert january not in log.months()
    with pytest.raises(StateError, match="no partition"):
        log.retire(january)


def test_a_month_cannot_be_taken_out_without_the_key(log: AuditLog, database: Database, stack: Stack) -> None:
    """The rows dropped, and the word forged that they were retired: they are missing all the same."""
    write(database, 5)
    log.seal()
    month = f"{datetime.now(UTC):%Y_%m}"
    tamper(
        stack,
        f"DELETE FROM audit_log_{month}; INSERT INTO audit_retired (month, rows, last_seal, key, mac) "
        f"VALUES (to_date('{month}', 'YYYY_MM'), 5, 1, '2026', '\\x00')",
    )
    assert {each.kind for each in log.verify().findings} == {Kind.SEAL, Kind.REMOVED}


def test_what_is_put_into_a_retired_month_is_named(log: AuditLog, database: Database, stack: Stack) -> None:
    stack.rows("SELECT audit_partition('2026-01-01')")
    insert = "INSERT INTO audit_log (at, actor, action, outcome) VALUES ('2026-01-15', 'ann', 'run.started', 'done')"
    stack.rows(insert)
    log.seal()
    log.retire(date(2026, 1, 1))
    tamper(stack, insert.replace("(at,", "(tx, at,").replace("('2026", "('5', '2026"))
    [finding] = log.verify().findings
    assert (finding.kind, finding.seal) == (Kind.INSERTED, 1)


def test_what_was_tampered_with_is_counted_and_a_thousand_are_named(
    log: AuditLog, database: Database, stack: Stack
) -> None:
    write(database, BATCH + 200)
    log.seal()
    tamper(stack, "UPDATE audit_log SET actor = 'nobody'")
    found = log.verify()
    assert (found.found, len(found.findings), found.sound) == (BATCH + 200, 1000, False)


def test_rows_of_a_month_without_a_partition_are_kept_and_sealed(
    log: AuditLog, database: Database, stack: Stack
) -> None:
    """Nobody made it in time; then it is not made any more, since the rows lie elsewhere."""
    stack.rows(
        "INSERT INTO audit_log (at, actor, action, outcome) VALUES ('2027-09-01', 'a', 'run.started', 'done')"
    )
    assert stack.rows("SELECT audit_partition('2027-09-01'), audit_partition('2027-10-01')") == [
        (False, True)
    ]
    assert log.seal() == 1
    assert (log.verify().rows, log.verify().findings) == (1, ())


def test_a_month_that_is_not_over_stays(log: AuditLog) -> None:
    with pytest.raises(StateError, match="not over"):
        log.retire(log.months()[0])


# --- reading


def test_pages_are_walked_newest_first_and_each_filter_holds(database: Database) -> None:
    with database.transaction() as connection:
        for n in range(30):
            entry = Entry(
                (AuditAction.RUN_STARTED, AuditAction.RUN_CANCELLED)[n % 2], f"thing:{n % 5}",
                (Outcome.DONE, Outcome.REFUSED)[n % 3 == 0], f"actor {n % 2}", f"tenant {n % 3}",
                run_id="00000000-0000-7000-8000-00000000000" + str(n % 4),
            )  # fmt: skip
            record(connection, entry)
    history = History(database)
    every = history.rows(limit=30)
    assert [row.id for row in every] == sorted((row.id for row in every), reverse=True)
    first = history.rows(limit=20)
    assert [*first, *history.rows(limit=20, before=first[-1])] == every
    assert list(history.all()) == every
    middle = every[10].at
    for given in (
        {"action": "run.started"}, {"actor": "actor 1"}, {"tenant": "tenant 2"}, {"target": "thing:3"},
        {"run_id": "00000000-0000-7000-8000-000000000002"}, {"outcome": "refused"}, {"outcome": "done"},
        {"actor": "actor 0", "tenant": "tenant 1", "outcome": "done"},
    ):  # fmt: skip
        expected = [row for row in every if all(getattr(row, name) == value for name, value in given.items())]
        assert expected
        assert history.rows(Filter(**given)) == expected
        assert history.rows(Filter(**given, since=middle)) == [row for row in expected if row.at >= middle]
        assert history.rows(Filter(**given, until=middle)) == [row for row in expected if row.at < middle]


@pytest.mark.parametrize(
    "given", [{"action": "run.stared"}, {"outcome": "bad"}, {"run_id": "7"}, {"since": datetime(2026, 1, 1)}]
)
def test_a_filter_that_can_find_nothing_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ParameterError, match=next(iter(given))):
        Filter(**given)
