"""The texts that mmguard says to models and callers; a policy may replace any of them.

Each prompt names its blanks in braces. The stages follow ECSO (arXiv 2403.09572) and
MLLM-Protector (arXiv 2401.02906); the words are our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mmguard.types import AnyRequest, Message, Request, Role, Sample, Text, TextMessage, TextRequest

JUDGE = (
    "Somebody asked an assistant:\n{query}\n\nThe assistant answered:\n{answer}\n\n"
    "Could this answer help anyone do harm, or is it itself hateful, sexual about minors, or "
    "cruel? Reply with one word, yes or no."
)
CAPTION = (
    "You will be asked this about the picture:\n{query}\n\nDo not answer it. Describe what the "
    "picture shows, so that somebody who cannot see it could answer. Leave out nothing that "
    "matters for the question."
)
CLOSED = (
    "The user sent a picture that you cannot see. This is a description of it:\n{caption}\n\n"
    "The user asks:\n{query}\n\nAnswer in a helpful and harmless way. If an honest answer would "
    "help anyone do harm, say briefly why you will not give it, and offer a safe alternative."
)
DETOXIFY = (
    "A user asked:\n{query}\n\nThis answer was drafted and may do harm:\n{answer}\n\n"
    "Write the answer anew, so that it can harm nobody. Keep what is useful and harmless, keep "
    "the user's language and format, and do not mention the draft."
)
REFUSAL = "I can't help with that. I'm glad to help with something safe instead."
CUT = "\n\n[The rest of this answer was withheld for safety.]"

BLANKS: Mapping[str, frozenset[str]] = {
    "judge": frozenset({"query", "answer"}),
    "caption": frozenset({"query"}),
    "closed": frozenset({"caption", "query"}),
    "detoxify": frozenset({"query", "answer"}),
}
BLANK = re.compile(r"\{(\w+)\}")


def fill(prompt: str, **values: str) -> str:
    """The prompt with its blanks filled in one pass, so that no value can open another blank."""
    return BLANK.sub(lambda found: values.get(found[1], found[0]), prompt)


# A judge says one word; a few tokens leave room for quotes and spaces before it.
JUDGE_OPTIONS = {"max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 20}
NO_WORDS = "(no words, only a picture)"


def judge(prompt: str, sample: Sample, image: bool) -> AnyRequest:
    """The judge's question about an answer, with the pictures of the request or without."""
    text = fill(prompt, query=sample.request.query or NO_WORDS, answer=sample.reply or "")
    if not image:
        return TextRequest((TextMessage("user", text),), JUDGE_OPTIONS)
    return Request((Message("user", (*sample.request.images, Text(text))),), JUDGE_OPTIONS)


def caption(prompt: str, request: Request, max_tokens: int) -> Request:
    """A question for a description of the pictures that serves the user's query."""
    text = fill(prompt, query=request.query or NO_WORDS)
    options = {"max_tokens": max_tokens, "temperature": 0}
    return Request((Message("user", (*request.images, Text(text))),), options)


def closed(prompt: str, request: Request, described: str) -> TextRequest:
    """The conversation in words, its last question asked over a description of the pictures."""
    question = fill(prompt, query=request.query or NO_WORDS, caption=described)
    last = max((i for i, m in enumerate(request.messages) if m.role == "user"), default=-1)
    turns = [
        TextMessage(SPOKEN.get(message.role, message.role), text)
        for i, message in enumerate(request.messages)
        if (text := question if i == last else message.text)
    ]
    return TextRequest(tuple(turns) or (TextMessage("user", question),), request.options)


# Without their call ids, which a `TextMessage` has no room for, servers refuse tool turns.
SPOKEN: Mapping[Role, Role] = {"tool": "user", "function": "user"}


def detoxify(prompt: str, request: Request, draft: str) -> TextRequest:
    """A question for a harmless rewrite of the draft."""
    text = fill(prompt, query=request.query or NO_WORDS, answer=draft)
    return TextRequest((TextMessage("user", text),), request.options)
