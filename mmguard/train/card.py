"""The card of a trained detector: what it is, what it was made from, how it measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABOUT = """# {name}

A logistic model over hashed words, word pairs and five-byte runs of a request and its answer; the
answer's first twelve words count once more by themselves. Two heads: p(answer is harmful | request,
answer), and p(request is harmful) for checks before there is an answer. NumPy only.

It is the fast first gate, not the last word: it knows wording and nothing of meaning, mostly in
English. Expect it to miss harm that is put politely and to flag harmless text about alarming matters.

## Training data and licences

`train.jsonl` and `train_aux.jsonl` of the project's data: GPTFuzz responses (MIT), DiaSafety
(Apache-2.0), JailbreakBench artifacts (MIT), adaptive attacks (MIT), MSTS (CC-BY-4.0), refusal_direction
(Apache-2.0), PyRIT scorer sets (MIT), benign instructions (MIT, Apache-2.0), HarmfulQA (Apache-2.0),
CatQA (Apache-2.0), AdvBench (MIT), VLSBench (Apache-2.0), ToxiGen (MIT), HateCheck (CC-BY-4.0), Surge
toxicity (MIT). The weights are Apache-2.0. Nothing marked evaluate-only was trained on; thresholds and
the request head's scale were set on the dev rows.

## What was tried (F1 at .5 and AUROC on dev, answers)

| change | F1 | AUROC |
|---|---|---|
| all rows alike, C 4 | .603 | .914 |
| harmless instructions count 3 times | .629 | .922 |
| ... 8 times | .646 | .928 |
| ... 16 times, C 1 | .660 | .931 |
| ... 30 times | .660 | .932 |
| ... 16 times, C 0.5 | .647 | .926 |
| toxic texts weigh 0.5 instead of 0.2 | .652 | .929 |
| the answer without its request | .644 | .923 |
| chit-chat weighs 0.3 instead of 1, before the above | .596 | .909 |

One thing was then paid for: with these rows a bare greeting scored .92, since the shortest answers of
the data are slurs and chit-chat. Harmless answers cut to a few words were added with weight 1 (kept; the
greeting scores .57), 3 (.52) or 8 (.45); best F1 went from .658 to .651, .641, .638, and AUROC from .930 to
.927, .923, .921. Windows of 1,200 characters instead of 2,400 cost another .03 of F1.

The rows of the table were single fits on dev, before calibration and eight-bit weights; what follows is the bundle.

## Measured on dev
"""


def describe(name: str, result: Mapping[str, Any]) -> str:
    """The card, its tables filled from `result` (the contents of `eval.json`)."""
    lines = [ABOUT.format(name=name)]
    for side in ("answer", "request"):
        found = result[side]
        lines.append(
            f"{side.capitalize()}s: {found['rows']} rows, {found['harmful']} harmful,"
            f" AUROC {found['auroc']}, expected calibration error {found['ece']}.\n"
        )
        lines.append("| strictness | threshold | F1 | recall | false alarms |")
        lines.append("|---|---|---|---|---|")
        lines += [
            row(word, result["thresholds"][word], found[word]) for word in result["thresholds"]
        ]
        lines.append("")
    lines.append("By source, at medium: `eval.json`.")
    return "\n".join(lines) + "\n"


def row(word: str, threshold: float, found: Mapping[str, float]) -> str:
    figures = " | ".join(f"{found[name]:.3f}" for name in ("f1", "recall", "false_alarms"))
    return f"| {word} | {threshold:.3f} | {figures} |"
