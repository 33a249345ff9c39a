"""What fails in the sidecar, as a status and an error in OpenAI's form.

A failure of the guard is never an answer, and never looks like a refusal by the policy.
What a failure says may be somebody's words: the log has it at level DEBUG only.
"""

from __future__ import annotations

import logging
from typing import Any

from mmguard.errors import ImageError, InputError, MmguardError, ModelError, OversizeError
from mmguard.server import wire
from mmguard.types import Guarded

log = logging.getLogger("mmguard.server")


class Refused(MmguardError):
    """A request that gets no answer: a status and an error in OpenAI's form."""

    def __init__(self, status: int, kind: str, message: str, **more: str) -> None:
        super().__init__(message)
        wait, self.status = more.pop("wait", ""), status
        self.headers = {"retry-after": wait} if wait else {}
        if status == 408:
            # Whatever else may come of that body, nobody waits for it.
            self.headers["connection"] = "close"
        self.body = wire.error(message, kind, **more)


def demand(guarded: Guarded) -> None:
    """Raises `Refused` where a detector failed and the policy lets nothing out unchecked."""
    if failed := wire.failure(guarded):
        raise unavailable(failed.detector, failed.error)


def unavailable(detector: str, error: str) -> Refused:
    """A detector failed: nothing is said about what it should have looked at."""
    log.error("detector %s failed", detector)
    log.debug("%s", error)
    return Refused(503, "guard_unavailable", "the guard cannot check this answer now", wait="5")


def picture_error(exc: ImageError) -> wire.Json:
    return wire.error(str(exc), "invalid_request_error", "invalid_image", "messages")


def tell(exc: Exception) -> tuple[int, Any, dict[str, str]]:
    """Status, body and headers of a failure."""
    match exc:
        case Refused():
            return exc.status, exc.body, exc.headers
        case OversizeError():
            return 413, picture_error(exc), {}
        case ImageError():
            for note in getattr(exc, "__notes__", ()):
                log.warning("a picture was refused: %s", note)
            return 400, picture_error(exc), {}
        case InputError():
            return 400, wire.error(str(exc), "invalid_request_error"), {}
        case ModelError(status=int(status), body=body) if status >= 400:
            return status, wire.read_error(body, str(exc)), dict(exc.retry)
        case ModelError():
            log.error("the upstream failed: %s", type(exc.__cause__ or exc).__name__)
            log.debug("%s", exc)
            return 502, wire.error("the upstream failed", "upstream_error"), {}
        case _:
            log.error("the sidecar failed: %s", type(exc).__name__)
            log.debug("%s", exc)
            return 500, wire.error("the sidecar failed", "server_error"), {}
