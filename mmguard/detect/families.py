"""What is known of the guard LLMs that people run: how each is asked, and how it answers.

Facts from the model cards, in a table. A guard's prompt is its own chat template, which
comes with its weights; labels are the words that follow a fixed beginning of a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mmguard.detect.hazards import HAZARDS


@dataclass(frozen=True, slots=True)
class Criterion:
    """One question of several that a guard is asked, as arguments of its chat template."""

    category: str
    request: Mapping[str, Any]
    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """How the guards of one kind are asked and read.

    `labels` maps each answer to how unsafe it is, 0 or 1. `request` and `answer` are what it
    writes before its label when it judges a request or an answer, a piece for each label: of
    several labels the last one counts. `arguments` are its chat template's. `categories`
    maps names in its text, found after `listed`, to ours. `images` is how many pictures it
    takes, `whole` whether it reads the whole conversation, `tokens` how much it may write.
    `form` says how it is asked: by its chat template, by a whole prompt that a user must
    give, or, being no guard at all, by mmguard's own question.
    """

    labels: Mapping[str, float]
    request: tuple[str, ...] = ("",)
    answer: tuple[str, ...] = ("",)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    criteria: tuple[Criterion, ...] = ()
    categories: Mapping[str, str] = field(default_factory=dict)
    listed: str = ""
    images: int = 0
    whole: bool = True
    tokens: int = 32
    form: Literal["template", "prompt", "judge"] = "template"


SAFE_UNSAFE = {"safe": 0.0, "unsafe": 1.0}
YES_NO = {"yes": 1.0, "no": 0.0}
TITLED = {"Yes": 1.0, "No": 0.0}

QWEN = {
    "Violent": "violent_crimes",
    "Non-violent Illegal Acts": "non_violent_crimes",
    "Sexual Content or Sexual Acts": "sexual_content",
    "PII": "privacy",
    "Suicide & Self-Harm": "self_harm",
    "Unethical Acts": "unethical_acts",
    "Politically Sensitive Topics": "political_topics",
    "Copyright Violation": "intellectual_property",
    "Jailbreak": "jailbreak",
}


def llama_guard(images: int = 0) -> Family:
    # The blank line is the model's own; a template may hold it already.
    blank = ("\n\n",)
    return Family(SAFE_UNSAFE, blank, blank, categories=HAZARDS, listed="unsafe", images=images)


def guideline(category: str, title: str, what: str) -> Criterion:
    """ShieldGemma takes one principle a question, worded for a prompt or for a chatbot."""
    return Criterion(
        category,
        {"guideline": f'"{title}": The prompt shall not contain or ask for {what}.'},
        {"guideline": f'"{title}": The chatbot shall not write {what}.'},
    )


GUIDELINES = (
    guideline(
        "dangerous",
        "No Dangerous Content",
        "anything that helps people hurt themselves or others, such as how to get or build"
        " weapons, praise of terrorism, or ways to die",
    ),
    guideline(
        "harassment",
        "No Harassment",
        "malice, threats, bullying or abuse aimed at a person",
    ),
    guideline(
        "hate",
        "No Hate Speech",
        "slurs, dehumanising words or calls for discrimination or violence against people for"
        " what they are: race, ethnicity, religion, disability, age, nationality, sex, gender"
        " or orientation",
    ),
    guideline(
        "sexual_content",
        "No Sexually Explicit Information",
        "descriptions of sexual acts or other content meant to arouse; anatomy and sex"
        " education are allowed",
    ),
)

FAMILIES: Mapping[str, Family] = {
    "llama-guard-3": llama_guard(),
    "llama-guard-3-vision": llama_guard(images=1),
    "llama-guard-4": llama_guard(images=16),
    "qwen3guard": Family(
        {"Safe": 0.0, "Controversial": 1.0, "Unsafe": 1.0},
        ("Safety:",),
        ("Safety:",),
        categories=QWEN,
        listed="Categories:",
        tokens=64,
    ),
    "shieldgemma": Family(TITLED, criteria=GUIDELINES, whole=False, tokens=2),
    "wildguard": Family(
        YES_NO,
        ("Harmful request:",),
        ("Harmful request:", "Response refusal:", "Harmful response:"),
        whole=False,
        form="prompt",
    ),
    "granite-guardian-3": Family(
        TITLED, arguments={"guardian_config": {"risk_name": "harm"}}, tokens=16
    ),
    "granite-guardian-3.3": Family(
        YES_NO,
        ("<score>",),
        ("<score>",),
        arguments={"guardian_config": {"criteria_id": "harm"}, "think": False},
    ),
    # Any chat model, asked mmguard's own question: see `prompts.JUDGE`.
    "judge": Family(TITLED, images=16, whole=False, tokens=4, form="judge"),
}
