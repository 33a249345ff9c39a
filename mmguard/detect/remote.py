"""A guard LLM behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmguard.detect.families import Family
from mmguard.detect.questions import Question
from mmguard.detect.readings import Step, Verdict, read_answer
from mmguard.errors import MmguardError, ModelError
from mmguard.models.openai import OpenAIModel, load, read_reply, refused

THREADS = 16
TOP = 20


class Remote:
    """Asks a server, several questions at once; `logprobs` off for servers that refuse them."""

    def __init__(self, model: OpenAIModel, family: Family, floor: float, logprobs: bool) -> None:
        self.model, self.family, self.floor = model, family, floor
        self.logprobs = logprobs

    def ask(self, questions: Sequence[Question]) -> list[Verdict | MmguardError]:
        """A verdict or a failure for each question, in order."""
        with ThreadPoolExecutor(min(len(questions), THREADS) or 1) as pool:
            return list(pool.map(self.attempt, questions))

    def close(self) -> None:
        self.model.close()

    def attempt(self, question: Question) -> Verdict | MmguardError:
        try:
            return self.answer(question)
        except MmguardError as exc:
            return exc
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
            return ModelError(f"the guard's server sent what is no completion: {exc!r}")

    def answer(self, question: Question) -> Verdict:
        text, steps = self.complete(question) if question.prompt else self.chat(question)
        return read_answer(self.family, question.leads[-1], text, steps, self.floor)

    def chat(self, question: Question) -> tuple[str, list[Step]]:
        options: dict[str, Any] = {"max_tokens": self.family.tokens, "temperature": 0}
        if self.logprobs:
            options |= {"logprobs": True, "top_logprobs": TOP}
        if question.arguments:
            options["chat_template_kwargs"] = dict(question.arguments)
        body = self.model.body(question.request) | options
        choice = self.post("chat/completions", body)
        return choice["message"].get("content") or "", chat_steps(choice)

    def complete(self, question: Question) -> tuple[str, list[Step]]:
        """For a guard without a chat template: its prompt as it is, beginning token included."""
        body: dict[str, Any] = {"model": self.model.name, "prompt": question.prompt}
        body |= {"max_tokens": self.family.tokens, "temperature": 0, "add_special_tokens": False}
        choice = self.post("completions", body | ({"logprobs": 5} if self.logprobs else {}))
        return str(choice.get("text") or ""), text_steps(choice)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The first choice of what the server answers."""
        with self.model.reported():
            response = self.model.client.post(path, json=body)
        if path == "chat/completions":
            return read_reply(response).raw["choices"][0]
        if response.status_code != 200:
            raise refused(response)
        try:
            return dict(load(response.content)["choices"][0])
        except (KeyError, IndexError, TypeError, ValueError) as exc:
            raise ModelError("the server's completion has no choice") from exc


def chat_steps(choice: Mapping[str, Any]) -> list[Step]:
    """Tokens with their rivals, from a chat completion."""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    return [(step["token"], rivals_of(step.get("top_logprobs") or [])) for step in tokens]


def rivals_of(top: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    rivals: dict[str, float] = {}
    for rival in top:
        rivals[rival["token"]] = rivals.get(rival["token"], 0.0) + math.exp(rival["logprob"])
    return rivals


def text_steps(choice: Mapping[str, Any]) -> list[Step]:
    """Tokens with their rivals, from a completion of plain text."""
    given = choice.get("logprobs") or {}
    tops = given.get("top_logprobs") or []
    rivals = [{name: math.exp(value) for name, value in (top or {}).items()} for top in tops]
    return list(zip(given.get("tokens") or [], rivals, strict=False))
