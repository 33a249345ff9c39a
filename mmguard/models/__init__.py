"""Things that answer. Each adapter imports its heavy packages when it is first used."""

from __future__ import annotations

import os

from mmguard import registry
from mmguard.types import Model


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
