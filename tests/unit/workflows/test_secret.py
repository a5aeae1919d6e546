"""Secret parameters and inputs: what is refused before anything is kept, and what an action is given."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from trellis.tasks.errors import ConfigurationError, DefinitionError, ParameterError
from trellis.tasks.vault import HIDDEN, Vault
from trellis.workflows import Default, Param, Workflow, action
from trellis.workflows.testing import Runner

KEYS = "a:0123456789abcdef"
SEEN: list[Any] = []


@action(name="secret.use")
def use(token: SecretStr, n: int = 0) -> int:
    SEEN.append(token.get_secret_value())
    return n


@action(name="secret.maybe")
def maybe(token: SecretStr | None = None) -> bool:
    return token is None


@action(name="secret.plainly")
def plainly(text: str) -> str:
    return text


@action(name="secret.opens")
def opens(token: SecretStr) -> None:
    raise ValueError(f"no luck with {token}")


def one(**inputs: Any) -> Workflow:
    wf = Workflow("one", params={"token": SecretStr}, register=False)
    wf.step("only", use, token=wf.params.token, **inputs)
    return wf


@pytest.fixture
def runner() -> Any:
    SEEN.clear()
    with Runner(secret_keys=KEYS) as made:
        yield made


@pytest.mark.parametrize("given", ["hunter2", SecretStr("hunter2")])
def test_an_action_gets_the_secret_and_nobody_else(runner: Runner, given: Any) -> None:
    run = runner.wait(runner.start(one(), {"token": given}))
    assert SEEN == ["hunter2"]
    assert run.params == {"token": HIDDEN}
    assert "hunter2" not in repr(runner._engine.store.all("run") + runner._engine.store.all("step"))


def test_maps_loops_and_children_hand_it_on(runner: Runner) -> None:
    child = Workflow("child", params={"token": SecretStr})
    child.step("only", use, token=child.params.token)
    wf = Workflow("parent", params={"token": SecretStr}, register=False)
    wf.map("each", use, over=[1, 2], token=wf.params.token, n=wf.item)
    wf.loop("again", use, until="result == 0", limit=3, token=wf.params.token)
    wf.child("below", child, params={"token": wf.params.token})
    run = runner.wait(runner.start(wf, {"token": "hunter2"}))
    assert run.state == "succeeded", run.error
    assert SEEN == ["hunter2"] * 4
    assert "hunter2" not in repr(runner._engine.store.all("run") + runner._engine.store.all("step"))


def test_a_single_action_takes_it_as_well(runner: Runner) -> None:
    run = runner.wait(runner.submit(use, {"token": SecretStr("hunter2"), "n": 3}))
    assert SEEN == ["hunter2"]
    assert runner.result(run, "use") == 3
    assert "hunter2" not in repr(runner._engine.store.all("definition"))


def test_one_that_may_be_left_out_may(runner: Runner) -> None:
    wf = Workflow("optional", params={"token": Param(SecretStr | None, default=None)}, register=False)
    wf.step("only", maybe, token=wf.params.token)
    assert runner.result(runner.wait(runner.start(wf)), "only") is True


def test_a_rerun_has_it_too_and_may_change_it(runner: Runner) -> None:
    run = runner.wait(runner.start(one(), {"token": "hunter2"}))
    runner.wait(runner.rerun(run, from_step="only"))
    runner.wait(runner.rerun(run, params={"token": "other"}))
    assert SEEN == ["hunter2", "hunter2", "other"]
    with pytest.raises(DefinitionError, match="change the parameter that it comes from"):
        runner.rerun(run, inputs={"only": {"token": "other"}})


def test_what_others_encrypted_is_not_opened_for_who_hands_it_in(runner: Runner) -> None:
    sealed = Vault({"a": b"0123456789abcdef"}).seal("hunter2", "it")
    runner.wait(runner.start(one(), {"token": sealed}))
    run = runner.wait(runner.start(one(), {"token": "x"}))
    runner.wait(runner.rerun(run, params={"token": sealed}))
    assert [sealed, "x", sealed] == SEEN


def test_an_error_shows_asterisks(runner: Runner) -> None:
    wf = Workflow("fails", params={"token": SecretStr}, register=False)
    wf.step("only", opens, token=wf.params.token)
    run = runner.wait(runner.start(wf, {"token": "hunter2"}))
    assert run.error is not None
    assert "hunter2" not in repr(run.error) + repr(runner.events(run))
    assert HIDDEN in run.error["message"]


def test_without_a_key_a_start_says_which_field_needs_which_setting() -> None:
    with (
        Runner() as runner,
        pytest.raises(
            ConfigurationError, match="'token' of workflow 'one' is secret, and TRELLIS_SECRET_KEYS"
        ),
    ):
        runner.start(one(), {"token": "hunter2"})


@pytest.mark.parametrize("wrong", [7, ["x"], {"a": 1}])
def test_a_secret_is_a_text_and_no_message_repeats_it(runner: Runner, wrong: Any) -> None:
    with pytest.raises(ParameterError, match="is secret, so it is a text"):
        runner.start(one(), {"token": wrong})
    short = Workflow("short", params={"token": {"type": "string", "format": "password", "writeOnly": True,
                                                "maxLength": 3}}, register=False)  # fmt: skip
    short.step("only", use, token=short.params.token)
    with pytest.raises(ParameterError) as caught:
        runner.start(short, {"token": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_secretstr_for_an_ordinary_parameter_is_refused(runner: Runner) -> None:
    wf = Workflow("plain", params={"text": str}, register=False)
    wf.step("only", plainly, text=wf.params.text)
    with pytest.raises(ParameterError, match="declare it as SecretStr"):
        runner.start(wf, {"text": SecretStr("hunter2")})


def _literal() -> Workflow:
    wf = Workflow("w", register=False)
    wf.step("only", use, token="hunter2")
    return wf


def _to(build: Any) -> Workflow:
    wf = Workflow("w", params={"token": SecretStr, "ok": int}, register=False)
    build(wf)
    return wf


class Auth(BaseModel):
    token: SecretStr


REFUSED: dict[str, tuple[Any, str]] = {
    "a literal": (_literal, "a definition is kept as it is written"),
    "an input that is not secret": (
        lambda: _to(lambda wf: wf.step("only", plainly, text=wf.params.token)),
        "goes, as a whole, to an input",
    ),
    "a text": (
        lambda: _to(lambda wf: wf.step("only", use, token=f"Bearer {wf.params.token}")),
        "goes, as a whole, to an input",
    ),
    "a condition": (
        lambda: _to(lambda wf: wf.step("only", plainly, text="x", when="params.token == 'x'")),
        "which is secret",
    ),
    "a key": (
        lambda: _to(lambda wf: wf.step("only", plainly, text="x", concurrency_key="{params.token}")),
        "which is secret",
    ),
    "a list": (
        lambda: _to(lambda wf: wf.map("only", plainly, over=wf.params.token, text=wf.item)),
        "which is secret",
    ),
    "what is shown to people": (
        lambda: _to(lambda wf: wf.approve("only", "May it?", show={"token": wf.params.token})),
        "goes, as a whole, to an input",
    ),
    "a default": (
        lambda: Workflow("w", params={"token": Param(SecretStr, default="hunter2")}, register=False),
        "has a default",
    ),
    "one inside another": (
        lambda: Workflow("w", params={"auth": Auth}, register=False),
        "has a secret inside",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_kept_as_it_is_is_refused(what: str) -> None:
    build, problem = REFUSED[what]

    def defined() -> None:
        wf = build()
        if not len(wf):
            wf.step("only", plainly, text="x")
        wf.validate()

    with pytest.raises(DefinitionError, match=problem):
        defined()


def test_an_action_that_returns_one_is_refused() -> None:
    def give() -> SecretStr:
        return SecretStr("x")

    with pytest.raises(DefinitionError, match="returns a SecretStr"):
        action(give)


def test_schedules_and_canvases_are_refused(runner: Runner) -> None:
    with pytest.raises(DefinitionError, match="a schedule would keep it"):
        runner.schedules.create("nightly", one(), every=60, params={"token": "hunter2"})
    with pytest.raises(DefinitionError, match="a canvas carries it"):
        one().canvas(token="hunter2")
    with pytest.raises(DefinitionError, match="a canvas carries it"):
        one().s(token="hunter2")


def test_a_child_that_does_not_take_it_as_secret_fails(runner: Runner) -> None:
    child = Workflow("loose", params={"token": str})
    child.step("only", plainly, text=child.params.token)
    wf = Workflow("strict", params={"token": SecretStr}, register=False)
    wf.child("below", child, params={"token": wf.params.token})
    run = runner.wait(runner.start(wf, {"token": "hunter2"}))
    assert run.error is not None
    assert "is secret in the parent" in run.error["message"]


def test_a_step_whose_secret_does_not_open_fails_with_its_policy(runner: Runner) -> None:
    """And a default of it stands in."""
    wf = Workflow("locked", params={"token": SecretStr}, register=False)
    wf.step("only", use, token=wf.params.token, on_failure=Default(7))
    run = runner.start(wf, {"token": "hunter2"}, delay=60)
    runner._engine.settings = runner._engine.settings.model_copy(update={"secret_keys": None})
    assert runner.result(runner.wait(run), "only") == 7
