"""Safety middleware for multimodal language models: `wrap` one, and ask it anything.

Nothing heavy is imported here; models, detectors and picture decoders load at first use.
"""

from mmguard.errors import MmguardError
from mmguard.guard import guard
from mmguard.policy import Policy, load_policy
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
