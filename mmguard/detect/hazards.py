"""The fourteen hazards of MLCommons' AILuminate, which Llama Guard's S1 to S14 name.

The order is canonical: a head, a table or a confusion matrix over hazards follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

HAZARDS: Mapping[str, str] = MappingProxyType(
    {
        "S1": "violent_crimes",
        "S2": "non_violent_crimes",
        "S3": "sex_crimes",
        "S4": "child_exploitation",
        "S5": "defamation",
        "S6": "specialized_advice",
        "S7": "privacy",
        "S8": "intellectual_property",
        "S9": "indiscriminate_weapons",
        "S10": "hate",
        "S11": "self_harm",
        "S12": "sexual_content",
        "S13": "elections",
        "S14": "code_abuse",
    }
)
