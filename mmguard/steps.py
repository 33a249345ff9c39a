"""The repair steps: each makes one new answer out of a case, or has none to make.

A step is a generator like the flow itself. It returns a `Reply`, or `None` where it does
not apply; it never judges its own work, the flow does. Packages add steps by entry point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mmguard import prompts
from mmguard.asks import Flow
from mmguard.case import Case
from mmguard.types import Reply

Step = Callable[[Case], Flow[Reply | None]]


def caption(case: Case) -> Flow[Reply | None]:
    """Eyes closed: describe the picture, then answer from the description alone (ECSO)."""
    if not case.request.images:
        return None
    how, texts = case.policy.caption, case.policy.prompts
    look = prompts.caption(texts.caption, case.request, how.max_tokens)
    described = yield from case.ask("caption", how.model, look)
    case.closed = True
    request = prompts.closed(texts.closed, case.request, described.text)
    return (yield from case.ask("closed", "target", request))


def detoxify(case: Case) -> Flow[Reply | None]:
    """Rewrite the draft so that it harms nobody (MLLM-Protector)."""
    if case.draft is None:
        return None
    request = prompts.detoxify(case.policy.prompts.detoxify, case.request, case.draft.text)
    return (yield from case.ask("detoxify", case.policy.detoxify.model, request))


def resample(case: Case) -> Flow[Reply | None]:
    """Let the target answer again, at a temperature; each try has a seed of its own."""
    if case.draft is None:
        return None
    fixed = {"do_sample", "num_beams"}
    options = {
        **{name: value for name, value in case.request.options.items() if name not in fixed},
        "temperature": case.policy.resample.temperature,
        "seed": case.attempt + 1,
    }
    return (yield from case.ask("resample", "target", replace(case.request, options=options)))
