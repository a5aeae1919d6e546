"""The user's modules are looked for before a worker starts."""

from pathlib import Path

import pytest

from trellis.tasks.errors import ConfigurationError
from trellis.tasks.imports import check_imports


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project as the current folder."""
    (tmp_path / "my_flows.py").write_text("raise RuntimeError('not imported by the check')\n")
    package = tmp_path / "my_shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "orders.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_modules_of_the_current_folder_are_found_and_not_run(folder: Path) -> None:
    check_imports(["my_flows", "my_shop.orders", "json"])


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("my_flow", "my_flows"),
        ("my_shop.order", "my_shop.orders"),
        ("my_shpo", "my_shop"),
        ("my_flows.py", "my_flows"),
        ("./my_shop/orders.py", "my_shop.orders"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(folder: Path, slip: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"did you mean '{meant}'"):
        check_imports([slip])


@pytest.mark.parametrize("name", ["no_such_thing_at_all", "no_such.thing", "", "../x"])
def test_what_does_not_exist_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be found"):
        check_imports([name])


def test_a_package_that_is_broken_is_left_to_the_worker(folder: Path) -> None:
    (folder / "my_broken").mkdir()
    (folder / "my_broken" / "__init__.py").write_text("raise RuntimeError('broken')\n")
    check_imports(["my_broken.flows"])
