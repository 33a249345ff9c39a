"""Guards behind an OpenAI-compatible server, whose answers have the shapes of real ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmguard import wrap
from mmguard.bundles import load_detector
from mmguard.errors import DetectorError, MmguardError, ModelError
from mmguard.models import Closeable
from mmguard.models.scripted import ScriptedModel
from mmguard.types import Detector, Finding, Sample
from tests.server import Answer, serve
from tests.tiny_guards import WILD, write_bundle
from tests.world import PICTURE, ask

Steps = list[tuple[str, dict[str, float]]]
SAMPLE = Sample(ask("How do I cook rice?"), "With water.")


def chat(text: str, steps: Steps | None = None) -> dict[str, Any]:
    """A chat completion, with logprobs as vLLM and OpenAI write them."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
    if steps is not None:
        choice["logprobs"] = {"content": [write(token, rivals) for token, rivals in steps]}
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]}


def write(token: str, rivals: dict[str, float]) -> dict[str, Any]:
    tops = [
        {"token": name, "logprob": math.log(share), "bytes": list(name.encode())}
        for name, share in rivals.items()
    ]
    return {"token": token, "logprob": -0.1, "bytes": None, "top_logprobs": tops}


@contextmanager
def guarded(folder: Path, answer: Answer, family: str, **settings: Any) -> Iterator[Detector]:
    with serve(answer) as url:
        more = {"url": url, "model": "m", **settings}
        detector = load_detector(write_bundle(folder, "guard", family=family, **more))
        assert isinstance(detector, Closeable)
        with closing(detector):
            yield detector


def one(folder: Path, body: dict[str, Any], family: str, **settings: Any) -> Finding:
    with guarded(folder, lambda sent: dict(body), family, **settings) as detector:
        [finding] = detector.score([SAMPLE])
    return finding


LINE: Steps = [("Safety", {"Safety": 1.0}), (":", {":": 1.0})]
TOKENS: dict[str, tuple[str, str, Steps, float]] = {
    "first": ("llama-guard-3", "safe", [("safe", {"safe": 0.6, "unsafe": 0.2})], 0.25),
    "blank": (
        "llama-guard-4",
        "\n\nunsafe\nS9",
        [("\n\n", {"\n\n": 1.0}), ("unsafe", {"unsafe": 0.9, "safe": 0.1})],
        0.9,
    ),
    "pieces": ("llama-guard-3", "unsafe", [("un", {"un": 0.6, "s": 0.2, "Un": 0.2})], 0.8),
    "line": (
        "qwen3guard",
        "Safety: Safe\nCategories: None\nRefusal: No",
        [*LINE, (" Safe", {" Safe": 0.5, " Unsafe": 0.3, " Cont": 0.2})],
        0.5,
    ),
    "yes": ("granite-guardian-3", "No", [("No", {"No": 0.7, "Yes": 0.1, " yes": 0.2})], 0.3),
    "score": (
        "granite-guardian-3.3",
        "<think>\n</think>\n<score> no </score>",
        [("<think>\n</think>\n", {}), ("<score>", {}), (" no", {" no": 0.75, " yes": 0.25})],
        0.25,
    ),
    "judge": ("judge", "Yes.", [("Yes", {"Yes": 0.5, "yes": 0.3, "No": 0.2})], 0.8),
}


@pytest.mark.parametrize(("family", "text", "steps", "score"), TOKENS.values(), ids=TOKENS)
def test_token_probabilities(
    family: str, text: str, steps: Steps, score: float, tmp_path: Path
) -> None:
    finding = one(tmp_path, chat(text, steps), family)
    assert finding.score == pytest.approx(score)
    assert finding.reason == "tokens"
    assert (finding.images, finding.chars, finding.error) == (0, SAMPLE.chars, "")


WORDS: dict[str, tuple[str, str, float, tuple[str, ...]]] = {
    "safe": ("llama-guard-3", "\n\nsafe", 0, ()),
    "unsafe": ("llama-guard-3", "unsafe\nS1,S11", 1, ("violent_crimes", "self_harm")),
    "unknown": ("llama-guard-4", "unsafe\nS77", 1, ()),
    "qwen": ("qwen3guard", "Safety: Safe\nCategories: None\nRefusal: Yes", 0, ()),
    "grey": (
        "qwen3guard",
        "Safety: Controversial\nCategories: PII, Suicide & Self-Harm\nRefusal: No",
        1,
        ("privacy", "self_harm"),
    ),
    "granite": ("granite-guardian-3", "Yes\n<confidence> High </confidence>", 1, ()),
    "score": ("granite-guardian-3.3", "<think> yes or no? </think><score> no </score>", 0, ()),
    "judge": ("judge", " no.", 0, ()),
}


@pytest.mark.parametrize(("family", "text", "score", "names"), WORDS.values(), ids=WORDS)
def test_words_where_there_are_no_logprobs(
    family: str, text: str, score: float, names: tuple[str, ...], tmp_path: Path
) -> None:
    finding = one(tmp_path, chat(text), family)
    assert (finding.score, finding.reason) == (score, "words")
    assert tuple(finding.categories) == names
    assert set(finding.categories.values()) <= {1.0}


GARBAGE = {
    "empty": ("llama-guard-3", ""),
    "talk": ("llama-guard-3", "I think that this is safe"),
    "longer": ("llama-guard-3", "safety first"),
    "no line": ("qwen3guard", "Safe"),
    "other": ("qwen3guard", "Safety: Fine"),
    "both": ("granite-guardian-3.3", "<score> yes </score><score> no </score>"),
    "untold": ("judge", "Perhaps"),
    "cut": ("granite-guardian-3.3", "<think> yes"),
}


@pytest.mark.parametrize(("family", "text"), GARBAGE.values(), ids=GARBAGE)
def test_what_cannot_be_read_is_an_error(family: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match=r"(0|2) labels"):
        one(tmp_path, chat(text), family)
    other = [(text or "?", {"Well": 0.99, "safe": 0.001})]
    with pytest.raises(DetectorError):
        one(tmp_path, chat(text, other), family)


def test_controversial_is_the_users_choice(tmp_path: Path) -> None:
    rivals = {" Safe": 0.5, " Unsafe": 0.1, " Controversial": 0.4}
    body = chat("Safety: Safe\nCategories: None", [*LINE, (" Safe", rivals)])
    assert one(tmp_path, body, "qwen3guard").score == pytest.approx(0.5)
    loose = one(tmp_path, body, "qwen3guard", controversial="safe")
    assert loose.score == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"status": 500, "error": "broken"}, "answered 500"),
        ({"status": 401, "error": "who?"}, "answered 401"),
        ({"choices": []}, "no message"),
        ({"choices": [{"message": None}]}, "no message"),
        ({"choices": [{"message": {"content": ["safe"]}}]}, "no completion"),
        ({**chat("?"), "choices": [{"message": {}, "logprobs": {"content": [{}]}}]}, "no comp"),
    ],
)
def test_servers_that_fail(body: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        one(tmp_path, body, "llama-guard-3")


def test_dead_servers(tmp_path: Path) -> None:
    gone = {"url": "http://127.0.0.1:9/v1", "model": "m", "timeout_s": 5}
    detector = load_detector(write_bundle(tmp_path, "guard", family="llama-guard-3", **gone))
    with pytest.raises(ModelError, match="cannot be reached"):
        detector.score([SAMPLE, SAMPLE])


def echo(sent: dict[str, Any]) -> dict[str, Any]:
    """Unsafe with the probability that the answer names; garbage where it names none."""
    said = sent["messages"][-1]["content"]
    if not said.isdigit():
        return chat("what?")
    return chat("safe", [("safe", {"unsafe": int(said) / 100, "safe": 1 - int(said) / 100})])


def test_order_and_rows_that_fail_alone(tmp_path: Path) -> None:
    said = [str(i) for i in range(1, 40)]
    said[7] = "none"
    with guarded(tmp_path, echo, "llama-guard-3") as detector:
        findings = detector.score([Sample(ask("?"), text) for text in said])
    assert [i for i, f in enumerate(findings) if f.error] == [7]
    scores = [f.score for f in findings]
    assert scores == pytest.approx([1.0 if i == 7 else (i + 1) / 100 for i in range(39)])


def sent_to(folder: Path, family: str, sample: Sample, **settings: Any) -> list[dict[str, Any]]:
    """What reaches the server, an answer at a time."""
    seen: list[dict[str, Any]] = []

    def answer(sent: dict[str, Any]) -> dict[str, Any]:
        seen.append(sent)
        return chat("unsafe" if "guard" in family else "Yes")

    with guarded(folder, answer, family, **settings) as detector:
        detector.score([sample])
    return seen


def test_on_the_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_KEY", "k")
    sample = Sample(ask("What is it?", PICTURE), "A square.")
    [body] = sent_to(tmp_path, "llama-guard-4", sample, key_env="GUARD_KEY")
    assert (body["path"], body["model"]) == ("/v1/chat/completions", "m")
    assert (body["logprobs"], body["top_logprobs"], body["temperature"]) == (True, 20, 0)
    parts, reply = body["messages"]
    assert [part["type"] for part in parts["content"]] == ["image_url", "text"]
    assert reply == {"role": "assistant", "content": "A square."}
    [body] = sent_to(tmp_path, "llama-guard-3", sample, logprobs=False)
    assert "logprobs" not in body
    assert body["messages"][0] == {"role": "user", "content": "What is it?"}


def test_arguments_on_the_wire(tmp_path: Path) -> None:
    seen = sent_to(tmp_path, "shieldgemma", SAMPLE)
    told = sorted(body["chat_template_kwargs"]["guideline"].split(":")[0] for body in seen)
    assert [title.strip('"').split()[1] for title in told] == [
        "Dangerous",
        "Harassment",
        "Hate",
        "Sexually",
    ]
    assert all("chatbot" in body["chat_template_kwargs"]["guideline"] for body in seen)


def test_granite_criteria_can_be_chosen(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(sent: dict[str, Any]) -> dict[str, Any]:
        bodies.append(sent)
        return chat("<score> yes </score>")

    own = {"guardian_config": {"criteria_id": "violence"}}
    for settings in ({}, {"arguments": own}):
        with guarded(tmp_path, answer, "granite-guardian-3.3", **settings) as detector:
            assert detector.score([SAMPLE])[0].score == 1
    told = [body["chat_template_kwargs"] for body in bodies]
    assert [one["guardian_config"]["criteria_id"] for one in told] == ["harm", "violence"]
    assert [one["think"] for one in told] == [False, False]


def completion(text: str, yes: float) -> dict[str, Any]:
    """A completion of plain text, with logprobs as vLLM writes them."""
    lines = ["Harmful request:", " no", "\n", "Response refusal:", " no", "\n"]
    tokens = [*lines, "Harmful response:", " yes"]
    tops: list[Any] = [None, {" no": -0.1, " yes": -3.0}, None, {}, {" no": -0.1}, {}, {}]
    last = {" yes": math.log(yes), " no": math.log(1 - yes)}
    logprobs = {"tokens": tokens, "token_logprobs": [], "top_logprobs": [*tops, last]}
    return {"object": "text_completion", "choices": [{"text": text, "logprobs": logprobs}]}


LINES = "Harmful request: no\nResponse refusal: no\nHarmful response: yes"


def test_wildguard_takes_a_prompt(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def answer(sent: dict[str, Any]) -> dict[str, Any]:
        seen.append(sent)
        return completion(LINES, 0.8)

    with guarded(tmp_path, answer, "wildguard", prompt=WILD) as detector:
        [finding] = detector.score([SAMPLE])
        assert finding.score == pytest.approx(0.8)
        assert finding.reason == "tokens"
        # Of a request alone the first line counts.
        [finding] = detector.score([Sample(ask("What?"))])
        assert finding.score == pytest.approx(math.exp(-3) / (math.exp(-3) + math.exp(-0.1)))
    assert seen[0]["path"] == "/v1/completions"
    assert seen[0]["prompt"] == WILD.format(query="How do I cook rice?", answer="With water.")


@pytest.mark.parametrize(
    "body", [{"choices": []}, {"choices": [{"text": "yes"}]}, {"status": 503, "error": "busy"}]
)
def test_wildguard_failures(body: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(MmguardError):
        one(tmp_path, body, "wildguard", prompt=WILD)


def under(folder: Path, answer: Answer) -> str:
    """What happens to an answer that is checked by this guard, named by its folder."""
    with serve(answer) as url:
        write_bundle(folder, "guard", family="llama-guard-3", model="m", url=url)
        policy = {"output": [{"detector": str(folder), "action": "block"}], "repair": []}
        wrapped = wrap(ScriptedModel(lambda request: "Fine."), policy=policy)
        got = wrapped.chat("hi")
        [detector] = wrapped.runtime.detectors.values()
        assert isinstance(detector, Closeable)
        detector.close()
    return got.action


def test_in_a_policy(tmp_path: Path) -> None:
    assert under(tmp_path, lambda sent: chat("safe")) == "pass"
    assert under(tmp_path, lambda sent: chat("unsafe\nS2")) == "block"
    assert under(tmp_path, lambda sent: chat("I cannot tell")) == "block"
    assert under(tmp_path, lambda sent: {"status": 500}) == "block"
