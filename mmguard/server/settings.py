"""How the sidecar is deployed: where its upstream is, who may ask, and its limits.

Facts of a deployment, never of a policy. From flags, the environment (`MMGUARD_UPSTREAM`, ...)
and one YAML file, in this order.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mmguard.errors import InputError
from mmguard.fields import Strict, contradict
from mmguard.server.attach import Rule, agree
from mmguard.server.breaker import Breaking
from mmguard.server.fetch import Rules

PREFIX = "MMGUARD_"
# Fields that one line cannot hold: they stand in the file.
NESTED = ("keys", "attach", "breaker", "pictures")


class Key(Strict):
    """A key of the sidecar's own, and the policy of whoever bears it."""

    key: str = Field(min_length=8, repr=False)
    policy: str | None = None


class Redaction(Strict):
    """What a regular expression finds, and what stands there instead."""

    pattern: str
    replacement: str = "[redacted]"

    @model_validator(mode="after")
    def compiles(self) -> Redaction:
        try:
            re.sub(self.pattern, self.replacement, "")
            re.compile(self.pattern)
        except (re.error, IndexError) as exc:
            fix = f"is no regular expression with its replacement: {exc}"
            raise contradict("pattern", value=self.pattern, fix=fix) from exc
        return self


# Who names a collector wants traces, unless told otherwise.
COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"
DATABASE = ("postgresql://", "postgres://")


class Audit(Strict):
    """Where decisions are recorded: an SQLite file, or a PostgreSQL database by its URL.

    `texts` keeps words too, after `redact`'s rules, in order; `pictures` keeps small copies of
    pictures, as they are. The oldest go after `days`, or when there are more than `mib`.
    `fail_closed`: no answer that could not be recorded.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    path: Path | None = None
    url: str | None = Field(default=None, repr=False)
    texts: bool = False
    pictures: bool = False
    redact: tuple[Redaction, ...] = ()
    days: Annotated[float, Field(gt=0)] | None = None
    mib: Annotated[float, Field(gt=0)] | None = None
    fail_closed: bool = False

    @model_validator(mode="after")
    def agree(self) -> Audit:
        if self.path and self.url:
            raise contradict("path", value=self.path, fix="name a file by path or else a url")
        if self.url and not self.url.startswith(DATABASE):
            fix = "is no PostgreSQL URL: give postgresql://user@host:5432/database"
            raise contradict("url", value="", fix=fix)
        return self

    @property
    def kept(self) -> bool:
        return bool(self.path or self.url)


def read_audit(value: Any) -> Any:
    """A path or a URL alone will do."""
    if not isinstance(value, str | Path):
        return value
    return {"url" if str(value).startswith(DATABASE) else "path": value}


class Settings(Strict):
    """One sidecar.

    `upstream` is a server's URL, up to and with `/v1`; or else `model` is one of this process:
    `embedded`, or a HuggingFace folder or hub name. Without `upstream_key` the caller's
    own `Authorization` goes on to it; `keys` are the sidecar's own, by the name of whoever
    bears one, and never go on. Rules under `attach` give policies to keys, models and routes.
    `operator_key` opens the page at `/ui`, which is not there without one. A request has at most
    `images` pictures; `pictures` says from where. Beside `in_flight` requests a `queue` of them
    waits, `queue_seconds` at the most. A request's `moderation` is answered by our detectors,
    or goes on to an upstream that knows it. Requests under way at SIGTERM have `drain_timeout`
    to end. Each of several `workers` is a process with all of these limits. `breaker` says
    when a detector or a model of repairs that keeps failing is not asked for a while. Times are
    in seconds, sizes in MiB.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    upstream: str | None = None
    model: str | None = None
    upstream_key: str = Field(default="", repr=False)
    policy: str = "balanced"
    keys: dict[str, Key] = Field(default_factory=dict)
    operator_key: str | None = Field(default=None, min_length=16, repr=False)
    attach: tuple[Rule, ...] = ()
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8377
    workers: Annotated[int, Field(ge=1)] = 1
    timeout: Annotated[float, Field(gt=0)] = 600
    detector_timeout: Annotated[float, Field(gt=0)] = 30
    upload_timeout: Annotated[float, Field(gt=0)] = 60
    drain_timeout: Annotated[int, Field(ge=0)] = 25
    breaker: Breaking = Breaking()
    heartbeat: Annotated[float, Field(gt=0)] = 15
    body_mib: Annotated[float, Field(gt=0)] = 64
    in_flight: Annotated[int, Field(ge=1)] = 256
    queue: Annotated[int, Field(ge=0)] = 64
    queue_seconds: Annotated[float, Field(gt=0)] = 5
    images: Annotated[int, Field(ge=0)] = 32
    pictures: Rules = Rules()
    refusal_in_content: bool = True
    moderation: Literal["answer", "forward"] = "answer"
    access_log: bool = True
    otel: bool = False
    audit: Annotated[Audit, BeforeValidator(read_audit)] = Field(default_factory=Audit)

    @model_validator(mode="after")
    def agree(self) -> Settings:
        if (self.upstream is None) == (self.model is None):
            fix = "name an upstream, the URL of a server up to and with /v1, or else a model"
            raise contradict("upstream", value=self.upstream, fix=fix)
        agree(self.attach, self.keys)
        return self

    def operates(self, authorization: str) -> bool:
        """Whether this header bears the operator's key, compared in constant time."""
        given = authorization.removeprefix("Bearer ").encode()
        return hmac.compare_digest((self.operator_key or "").encode(), given) and bool(given)

    @property
    def policies(self) -> set[str]:
        """All that a request may be under."""
        own = {key.policy for key in self.keys.values() if key.policy}
        return {self.policy, *own, *(rule.policy for rule in self.attach)}

    def bearer(self, authorization: str) -> str | None:
        """The name of whoever bears this header's key, compared in constant time."""
        given = authorization.removeprefix("Bearer ").encode()
        matches = [n for n, k in self.keys.items() if hmac.compare_digest(k.key.encode(), given)]
        return matches[0] if matches else None


def load_settings(
    path: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Settings:
    """Raises `InputError` that names the field, its value and where it came from."""
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if environment.get(COLLECTOR):
        layers.append((COLLECTOR, {"otel": True}))
    if path:
        layers.append((str(path), read_file(path)))
    known = {PREFIX + name.upper(): name for name in Settings.model_fields if name not in NESTED}
    named = {field: environment[name] for name, field in known.items() if environment.get(name)}
    layers += [("the environment", named), ("the flags", flags)]
    values: dict[str, Any] = {}
    for _, layer in layers:
        values |= {name: value for name, value in layer.items() if value is not None}
    try:
        return Settings.model_validate(values)
    except ValidationError as exc:
        error = exc.errors()[0]
        name = ".".join(map(str, error["loc"] or error.get("ctx", {}).get("where", ())))
        source = next((s for s, layer in reversed(layers) if name.split(".")[0] in layer), "")
        told = f"{name}: {error['msg']}" + (f" (from {source})" if source else "")
        raise InputError(f"{told}; see mmguard serve --help") from exc


def read_file(path: Path) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as exc:
        raise InputError(f"{path} cannot be read: {exc}") from exc
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold fields and values, not {type(values).__name__}")
    return values
