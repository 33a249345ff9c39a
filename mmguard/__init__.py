"""Safety middleware for multimodal language models: `wrap` one, and ask it anything.

Nothing heavy is imported here; policies, models, detectors and picture decoders load at
first use.
"""

import os
from typing import TYPE_CHECKING, Any

from mmguard.errors import MmguardError
from mmguard.guard import guard
from mmguard.record import record
from mmguard.types import (
    Coverage,
    Finding,
    Guarded,
    Image,
    Message,
    Opaque,
    Reply,
    Request,
    Sample,
    Text,
)
from mmguard.wrap import Wrapped, wrap

if TYPE_CHECKING:
    from mmguard.policy import Policy, load_policy

# From 1.31 on ONNX Runtime reports its use to its makers unless told otherwise before it loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

__all__ = [
    "Coverage",
    "Finding",
    "Guarded",
    "Image",
    "Message",
    "MmguardError",
    "Opaque",
    "Policy",
    "Reply",
    "Request",
    "Sample",
    "Text",
    "Wrapped",
    "guard",
    "load_policy",
    "record",
    "wrap",
]


def __getattr__(name: str) -> Any:
    # pydantic takes longer to import than all the rest of the core together.
    if name in ("Policy", "load_policy"):
        from mmguard import policy

        return getattr(policy, name)
    raise AttributeError(f"module 'mmguard' has no attribute {name!r}")
