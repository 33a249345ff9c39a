"""Things that answer. Each adapter imports its heavy packages when it is first used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from mmguard import registry
from mmguard.types import Model


@runtime_checkable
class Closeable(Protocol):
    """A model that holds connections."""

    def close(self) -> None: ...


@contextmanager
def opened(name: str, *, served: str = "default") -> Iterator[Model]:
    """`open_model`, closed again at the end."""
    model = open_model(name, served=served)
    try:
        yield model
    finally:
        if isinstance(model, Closeable):
            model.close()


def open_model(name: str, *, served: str = "default") -> Model:
    """A model from what a person writes: a registered name, a server's URL, a folder or hub name.

    Behind a URL, `served` is the model to ask for, and the key comes from `OPENAI_API_KEY`.
    """
    if name.startswith(("http://", "https://")):
        key = os.environ.get("OPENAI_API_KEY", "")
        made: Model = registry.find("models", "openai")(name, served, key=key)
    elif name in registry.names("models") and name not in ("hf", "openai"):
        made = registry.find("models", name)()
    else:
        made = registry.find("models", "hf").load(name)
    return made
