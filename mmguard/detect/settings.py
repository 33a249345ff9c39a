"""What `settings:` of a `detector.yaml` may say: read strictly, refused with value and fix."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmguard.errors import BundleError, MissingExtra

if TYPE_CHECKING:
    from mmguard.bundles import Bundle

T = TypeVar("T", bound=BaseModel)
WORDS: Mapping[str, float] = {"low": 0.7, "medium": 0.5, "high": 0.3}
FIXES = {
    "extra_forbidden": "no such setting; remove it or fix its spelling",
    "missing": "this setting is missing; add it",
}


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Endpoint(Strict):
    """Where a server is: `url` up to and with `/v1`, the variable that holds its key, seconds."""

    url: str = Field(pattern="^https?://")
    key_env: str = ""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0

    @property
    def key(self) -> str:
        """The key; `BundleError` if its variable is not set."""
        if not self.key_env:
            return ""
        if not (found := os.environ.get(self.key_env, "")):
            raise BundleError(
                f"key_env {self.key_env!r}: the environment has no such variable; set it"
            )
        return found


class Weights(Strict):
    """Weights in a local folder or of the hub, at a `revision`; a GPU is used if there is one."""

    model: str = Field(min_length=1)
    revision: str | None = None
    device: str | None = None

    @property
    def pinned(self) -> dict[str, str]:
        return {} if self.revision is None else {"revision": self.revision}


def read_settings(kind: type[T], bundle: Bundle) -> T:
    """The bundle's settings as this model; `BundleError` names what is wrong and the fix."""
    return parse_settings(kind, bundle.settings, bundle.name)


def parse_settings(kind: type[T], given: Mapping[str, Any], name: str) -> T:
    try:
        return kind.model_validate(dict(given))
    except ValidationError as exc:
        lines = [f"bundle {name!r}: {explain(error)}" for error in exc.errors()]
        raise BundleError("\n".join(lines)) from exc


def explain(error: Any) -> str:
    where = ".".join(str(part) for part in ("settings", *error["loc"]))
    shown = "" if error["type"] == "missing" else f" {error['input']!r}"
    message = FIXES.get(error["type"], error["msg"].removeprefix("Value error, "))
    return f"{where}{shown}: {message}"


def load_weights(auto: str, model: str, **options: Any) -> Any:
    """`transformers`' class of this name, from a local folder or the hub.

    Raises `BundleError` if it cannot be loaded.
    """
    try:
        # Without torch, transformers gives placeholders.
        import torch  # noqa: F401
        import transformers
    except ImportError as exc:
        raise MissingExtra("torch and transformers", "hf", f"detector model {model!r}") from exc
    try:
        return getattr(transformers, auto).from_pretrained(model, **options)
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as exc:
        first = str(exc).strip().split("\n")[0]
        raise BundleError(
            f"settings.model {model!r} cannot be loaded by {auto}: {first};"
            " give a local folder or a hub name, or log in to the hub if it is gated"
        ) from exc


def place_model(model: Any, device: str | None) -> Any:
    """The model in evaluation mode on this device; by default a GPU where there is one."""
    import torch

    return model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
