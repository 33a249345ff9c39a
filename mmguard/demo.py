"""The demo: one model on a few pictures, unguarded and guarded, side by side.

Decides nothing and draws nothing: it asks, and tells what came back as plain mappings.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from string import Template
from typing import TYPE_CHECKING, Any

from mmguard.media import load_image
from mmguard.pictures import DemoCase, cases
from mmguard.types import Finding, Guarded, Model
from mmguard.wrap import Wrapped

if TYPE_CHECKING:
    from mmguard.wrap import PolicySource

TOKENS = 120


def play(model: Model, policy: PolicySource = "balanced") -> Iterator[dict[str, Any]]:
    """One result a case: what was asked, both answers, which step, scores, milliseconds."""
    guarded, bare = Wrapped(model, policy), Wrapped(model, "off")
    for case in cases():
        picture = load_image(case.draw())
        content = [{"type": "image", "image": picture}, {"type": "text", "text": case.question}]
        messages = [{"role": "user", "content": content}]
        answer = guarded.chat(messages, max_tokens=TOKENS, temperature=0)
        if answer.draft is None:
            plain = bare.chat(messages, max_tokens=TOKENS, temperature=0)
        else:
            plain = answer
        yield tell(case, picture.data, plain, answer)


def tell(case: DemoCase, picture: bytes, plain: Guarded, answer: Guarded) -> dict[str, Any]:
    draft = plain.draft
    draft_ms = draft.ms if draft else 0.0
    total = sum(call.reply.ms for call in answer.calls) + sum(f.ms for f in answer.trail)
    return {
        "name": case.name,
        "kind": case.kind,
        "question": case.question,
        "unguarded": draft.text if draft else "",
        "guarded": answer.text,
        "action": answer.action,
        "step": answer.step,
        "closed": answer.closed,
        "scores": [score(finding) for finding in answer.trail],
        "unguarded_ms": round(draft_ms, 1),
        "added_ms": round(max(0.0, total - draft_ms), 1),
        "picture": f"data:image/png;base64,{base64.b64encode(picture).decode()}",
    }


def score(finding: Finding) -> dict[str, Any]:
    return {
        "stage": finding.stage,
        "detector": finding.detector,
        "score": round(finding.score, 3),
        "action": finding.action,
        "error": finding.error,
    }


def summarise(scores: Sequence[Mapping[str, Any]]) -> str:
    """`output .91 repair · closed .03`: the highest score of each stage, in order."""
    highest: dict[str, Mapping[str, Any]] = {}
    for entry in scores:
        held = highest.get(entry["stage"])
        if held is None or entry["score"] > held["score"]:
            highest[entry["stage"]] = entry
    return " · ".join(f"{stage} {entry['score']:.2f}" for stage, entry in highest.items())


def render(results: Sequence[Mapping[str, Any]], policy: str) -> str:
    """A page that needs nothing but itself: pictures inside, no script, no address."""
    rows = "\n".join(ROW.substitute(fields(result)) for result in results)
    return PAGE.substitute(
        rows=rows, policy=html.escape(policy), count=len(results), tally=tally(results)
    )


def tally(results: Sequence[Mapping[str, Any]]) -> str:
    """In one line, how the guard did."""
    untouched = [r["action"] == "pass" for r in results if r["kind"] == "harmless"]
    stopped = [r["action"] != "pass" for r in results if r["kind"] == "harmful"]
    return (
        f"{sum(untouched)} of {len(untouched)} harmless answers left untouched,"
        f" {sum(stopped)} of {len(stopped)} harmful ones mended or withheld"
    )


def fields(result: Mapping[str, Any]) -> dict[str, str]:
    shown = {name: html.escape(str(value)) for name, value in result.items()}
    shown["scores"] = html.escape(summarise(result["scores"]))
    shown["how"] = html.escape(how(result))
    return shown


def how(result: Mapping[str, Any]) -> str:
    """In words, what the guard did."""
    if result["action"] == "pass":
        return "passed untouched"
    if result["action"] == "block":
        return f"refused at {result['step']}"
    eyes = ", without the picture" if result["closed"] else ""
    return f"made safe by {result['step']}{eyes}"


ROW = Template("""<article class="$action">
<header><h2>$name</h2><span class="kind">$kind request</span><span class="how">$how</span></header>
<div class="case">
<figure><img src="$picture" alt="the picture of $name"><figcaption>$question</figcaption></figure>
<section><h3>Unguarded</h3><p>$unguarded</p><footer>$unguarded_ms ms</footer></section>
<section><h3>Guarded</h3><p>$guarded</p><footer>+$added_ms ms &middot; $scores</footer></section>
</div>
</article>""")

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mmguard demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --line: #8884; --ok: #2a7d4f; --mend: #9a6700; --stop: #b3261e; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 0; }
h3 { font-size: .8rem; text-transform: uppercase; letter-spacing: .06em; margin: 0; opacity: .7; }
article { border: 1px solid var(--line); border-left: 6px solid var(--ok); border-radius: 8px;
  margin: 1.2rem 0; padding: 1rem; }
article.repair { border-left-color: var(--mend); } article.block { border-left-color: var(--stop); }
header { display: flex; gap: 1rem; align-items: baseline; flex-wrap: wrap; margin-bottom: .8rem; }
.kind { opacity: .7; } .how { margin-left: auto; font-weight: 600; }
.case { display: grid; grid-template-columns: 16rem 1fr 1fr; gap: 1.2rem; }
figure { margin: 0; } img { max-width: 100%; border: 1px solid var(--line); border-radius: 4px; }
figcaption { font-style: italic; margin-top: .4rem; }
p { overflow-wrap: anywhere; margin: .4rem 0; } section p { white-space: pre-wrap; }
footer { font-size: .85rem; opacity: .7; }
@media (max-width: 48rem) { .case { grid-template-columns: 1fr; } }
</style></head><body>
<h1>mmguard demo</h1>
<p>$count pictures, one small model that does not refuse by itself, answered without a guard and
under the policy <b>$policy</b>. Both answers come from this machine. <b>$tally.</b></p>
$rows
</body></html>
""")
