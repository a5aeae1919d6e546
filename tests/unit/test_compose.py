"""docker/compose.yaml: valid by the Compose specification, and true to what the documentation says of it."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from trellis.tasks.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
TEXT = (ROOT / "docker" / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("migrate", "worker", "beat", "flower")
# check-jsonschema ships the schema of the compose-spec project; it is a development dependency for that.
SPECIFICATION = json.loads(
    (resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text()
)
REFERENCE = re.compile(r"\$\{(?P<name>\w+)(?P<rest>[^}]*)\}")


def _seconds(duration: str) -> float:
    parts = re.findall(r"(\d+)(ms|s|m|h)", duration)
    assert "".join(number + unit for number, unit in parts) == duration
    return sum(float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)


def test_it_is_valid_by_the_specification() -> None:
    validator = jsonschema.validators.validator_for(SPECIFICATION)(SPECIFICATION)
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(COMPOSE)] == []


def test_the_schema_would_notice() -> None:
    """A check that accepts everything is none."""
    broken = {"services": {"worker": {**SERVICES["worker"], "stop_grace_periode": "50s"}}}
    with pytest.raises(jsonschema.ValidationError, match="stop_grace_periode"):
        jsonschema.validate(broken, SPECIFICATION)


def test_the_services_are_the_documented_ones() -> None:
    assert set(SERVICES) == {"postgres", "redis", *OURS}


def test_one_image_runs_all_of_ours() -> None:
    assert {SERVICES[name]["image"] for name in OURS} == {"${TRELLIS_IMAGE:-trellis}"}
    build = SERVICES["worker"]["build"]
    assert (ROOT / "docker" / build["context"] / build["dockerfile"]).is_file()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_has_a_health_check_or_says_why_not(name: str) -> None:
    check = SERVICES[name].get("healthcheck")
    if name == "worker":
        assert check is None, "the worker's is in the image"
        assert "HEALTHCHECK" in DOCKERFILE
    elif name == "migrate":
        assert check == {"disable": True}, "it ends"
    else:
        assert check is not None
        assert check["test"][0] in ("CMD", "CMD-SHELL")
        assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_restarts(name: str) -> None:
    assert SERVICES[name]["restart"] == ("no" if name == "migrate" else "unless-stopped")


def test_nothing_starts_before_what_it_needs() -> None:
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("worker", "beat", "flower"):
        assert SERVICES[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "redis": {"condition": "service_healthy"},
        }


def test_workers_can_be_scaled() -> None:
    """A name or a port of the host can be had once only."""
    assert not {"container_name", "ports", "hostname"} & set(SERVICES["worker"])


def test_only_flower_can_be_reached_and_only_from_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"flower": ["127.0.0.1:${FLOWER_PORT:-5555}:5555"]}
    assert not [name for name, service in SERVICES.items() if "network_mode" in service]


def test_a_worker_has_time_to_stop() -> None:
    """Docker kills at the end of the grace period; the running steps and the end of the rest fit in."""
    patience = float(SERVICES["worker"]["environment"]["TRELLIS_SHUTDOWN_SECONDS"])
    grace = Settings.model_fields["timeout_grace"].default
    assert _seconds(SERVICES["worker"]["stop_grace_period"]) >= patience + grace + 10
    assert "STOPSIGNAL SIGTERM" in DOCKERFILE


def test_the_variables_of_ours_are_settings() -> None:
    """A misspelt TRELLIS_ variable would be ignored in silence."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in OURS:
        used = {key for key in SERVICES[name]["environment"] if key.startswith(PREFIX)}
        assert used <= known
        assert {"TRELLIS_DATABASE_URL", "TRELLIS_BROKER_URL"} <= used
    image = set(re.findall(rf"\b({PREFIX}[A-Z_]+)=", DOCKERFILE))
    assert image <= known


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    for match in REFERENCE.finditer(TEXT):
        if "PASSWORD" in match["name"]:
            assert match["rest"].startswith(":?"), match[0]
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if "PASSWORD" in key or "AUTH" in key:
                assert value is None or str(value).startswith("${"), key


def test_the_example_names_every_variable() -> None:
    """With its default, commented out; what has none stands there empty, to be set."""
    example = dict(
        line.lstrip("#").split("=", 1)
        for line in (ROOT / "docker" / ".env.example").read_text().splitlines()
        if re.match(r"#?[A-Z_]+=", line)
    )
    wanted = {match["name"]: match["rest"] for match in REFERENCE.finditer(TEXT)}
    assert set(wanted) <= set(example)
    for name, rest in wanted.items():
        if rest.startswith(":?"):
            assert example[name] == "", f"{name} is for the reader to set"
        elif rest != ":-" and name not in ("TRELLIS_ARTIFACTS_URL",):
            assert example[name] == rest.removeprefix(":-"), name
    assert set(example) - set(wanted) == {"FLOWER_BASIC_AUTH"}, "passed on by its bare name"


def test_redis_keeps_what_it_is_given() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


@pytest.mark.parametrize("name", OURS)
def test_ours_run_with_little_power(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service, "the image's own account, which is not root"
    assert re.search(r"^USER 10001", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "migrate"])
def test_every_lasting_service_has_a_memory_limit(name: str) -> None:
    assert "memory" in SERVICES[name]["deploy"]["resources"]["limits"]


def test_images_come_by_name_alone() -> None:
    """Which registry they come from is the user's choice, not ours."""
    names = [service["image"] for service in SERVICES.values()]
    names += re.findall(r"^ARG PYTHON_IMAGE=(\S+)", DOCKERFILE, re.MULTILINE)
    for name in names:
        plain = REFERENCE.sub(lambda match: match["rest"].removeprefix(":-"), name)
        first = plain.split("/")[0] if "/" in plain else ""
        assert "." not in first, plain
        assert ":" not in first, plain
