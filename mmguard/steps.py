"""The repair steps: each makes one new answer out of a case, or says why it has none.

A step is a generator like the flow itself. It returns a `Reply`, or a `Source` for the flow to
have one made, which then may stream and end early; or it raises `StepError` with the reason
for the trail. Whatever else it raises is a failure. It never passes its own work, the flow
judges that. Packages add steps by entry point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmguard import grading, prompts
from mmguard.asks import Flow
from mmguard.case import Case, Source
from mmguard.errors import StepError
from mmguard.types import Finding, Reply, Sample
from mmguard.verdict import read_judge


def caption(case: Case) -> Flow[Source]:
    """Eyes closed: describe the pictures, then answer from the descriptions alone.

    ECSO (arXiv 2403.09572); that descriptions are checked, quoted and one a picture is ours.
    """
    described = yield from describe(case)
    if case.policy.caption.check:
        described = yield from grading.screen(case, described)
    case.closed = True
    request = prompts.closed(case.policy.prompts.closed, case.request, described)
    return Source("closed", "target", request)


def describe(case: Case) -> Flow[list[str]]:
    """What the pictures show, in no more words than the policy allows."""
    if not case.request.images:
        raise StepError("the request has no picture")
    how, prompt = case.policy.caption, case.policy.prompts.caption
    looks = prompts.look(prompt, case.request, how.max_tokens, how.together)
    replies = yield from case.ask_all("caption", how.model, looks)
    texts = [reply.text.strip()[: prompts.CHARS * how.max_tokens] for reply in replies]
    if not all(texts):
        raise StepError("a description is empty")
    if case.draft and case.draft.text.strip() in texts:
        raise StepError("a description repeats the draft")
    return texts


def excise(case: Case) -> Flow[Reply]:
    """Cut the harmful sentences out of a mostly harmless draft; no model is asked.

    Harm is found sentence by sentence, with a severity, as HSA-DPO finds hallucinations.
    """
    draft = drafted(case)
    if draft.finish == "cut":
        raise StepError("the draft was cut off in mid-stream")
    how = case.policy.excise
    text = yield from grading.prune(case, "excise", draft.text, grading.as_answer, how)
    return Reply(text, draft.finish)


def rewrite(case: Case) -> Flow[Source]:
    """Write the draft anew by the policy's principles, after a plan of what is safe to say.

    Analysis, guidance and answer as in AlignCoT (arXiv 2405.00557); principles in plain words
    as in SALMON (arXiv 2310.05910).
    """
    draft, how, texts, known = drafted(case), case.policy.rewrite, case.policy.prompts, brief(case)
    plan = prompts.NO_PLAN
    if how.staged:
        request = prompts.plain(texts.plan, prompts.PLAN_OPTIONS, **known)
        plan = (yield from case.ask("plan", how.model, request)).text
    known |= {"plan": plan, "answer": draft.text}
    request = prompts.plain(texts.rewrite, case.request.options, **known)
    return Source("rewrite", how.model, request)


def resume(case: Case) -> Flow[Reply]:
    """Keep the draft's sentences up to the first harm, and have the rest written anew.

    The one step for an answer of which something has left: that stays its beginning.
    """
    drafted(case)
    kept = yield from grading.beginning(case)
    request = prompts.plain(
        case.policy.prompts.resume, case.request.options, **brief(case), answer=kept
    )
    reply = yield from case.ask("resume", case.policy.rewrite.model, request)
    return replace(reply, text=join(kept, reply.text.removeprefix(kept.strip())))


def brief(case: Case) -> dict[str, str]:
    """What whoever writes an answer must know: the question, and the policy's principles."""
    rules = "\n".join(f"- {principle}" for principle in case.policy.principles)
    return {"query": case.request.query or prompts.NO_WORDS, "principles": rules}


def join(kept: str, rest: str) -> str:
    """A beginning and its rest, a space between them where neither has one."""
    if not rest.strip():
        raise StepError("nothing came after the beginning")
    if kept[-1:].isspace():
        return kept + rest.lstrip(" ")
    return kept + rest if not rest[:1].isalnum() else f"{kept} {rest}"


def detoxify(case: Case) -> Flow[Source]:
    """Write the draft anew without a look at the request (MLLM-Protector, arXiv 2401.02906).

    A prompt that names `{query}` shows the request as well.
    """
    draft, prompt = drafted(case), case.policy.prompts.detoxify
    known = {"query": case.request.query or prompts.NO_WORDS, "answer": draft.text}
    request = prompts.plain(prompt, case.request.options, **known)
    yield from ()
    return Source("detoxify", case.policy.detoxify.model, request)


def resample(case: Case) -> Flow[Reply]:
    """The best of several new answers of the target; the first that is good enough ends it."""
    drafted(case)
    how, tried = case.policy.resample, list[Candidate]()
    for seed in range(1, how.tries + 1):
        request = prompts.again(case.request, seed, how.temperature)
        reply = yield from case.ask("resample", "target", request)
        tried.append((yield from appraise(case, reply)))
        if tried[-1].passes and (how.helper is None or tried[-1].helps >= how.enough):
            break
    return max(tried, key=lambda candidate: candidate.worth).reply


@dataclass(frozen=True, slots=True)
class Candidate:
    """One new answer: whether it passes the checks, its harm, and how much it helps."""

    reply: Reply
    passes: bool
    harm: float
    helps: float

    @property
    def worth(self) -> tuple[bool, float]:
        return self.passes, self.helps - self.harm


def appraise(case: Case, reply: Reply) -> Flow[Candidate]:
    """What a new answer is worth, by the policy's checks and its helper."""
    view, helper = grading.as_answer(case, reply.text), case.policy.resample.helper
    [harm] = yield from grading.grade(case, "resample", [view])
    helps = 0.0
    if helper:
        sample = Sample(case.request, reply.text)
        # Without the picture, which may be what misled the target.
        request = prompts.judge(case.policy.prompts.helpful, sample, image=False)
        helps = read_judge((yield from case.ask("helpful", helper, request))).score
    told = f"helps {helps:.2f}" if helper else ""
    case.trail.append(Finding("resample", harm.score, "tried", reason=told, stage="resample"))
    passes = harm.action == "pass" and bool(reply.text.strip())
    return Candidate(reply, passes, harm.score, helps)


def drafted(case: Case) -> Reply:
    if case.draft is None:
        raise StepError("there is no draft")
    return case.draft
