"""A job's rows in the words of the trainers that will read them.

Field names are those of TRL, LLaVA, LLaMA-Factory, ms-swift, Axolotl and LMFlow; AlignCoT's and
PRISM's are those of their papers. A format gives a row's records, none where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmguard.prompts import PRINCIPLES

Row = Mapping[str, Any]
Record = dict[str, Any]
MARK = "<image>"
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def is_pair(row: Row) -> bool:
    """Whether the row has a worse answer beside its own: a draft that the checks refused."""
    return row["decision"] != "pass" and bool(row["draft"]) and row["draft"] != row["answer"]


# -- TRL ------------------------------------------------------------------------


def trl_sft(row: Row) -> Iterator[Record]:
    yield {"messages": [*asked(row), said(row["answer"])], "images": paths(row)}


def trl_prompt(row: Row) -> Iterator[Record]:
    yield {"prompt": asked(row), "completion": [said(row["answer"])], "images": paths(row)}


def trl_dpo(row: Row) -> Iterator[Record]:
    if is_pair(row):
        both = {"chosen": [said(row["answer"])], "rejected": [said(row["draft"])]}
        yield {"prompt": asked(row), **both, "images": paths(row)}


def trl_kto(row: Row) -> Iterator[Record]:
    for text, good in judged(row):
        made = {"prompt": asked(row), "completion": [said(text)], "label": good}
        yield {**made, "images": paths(row)}


def judged(row: Row) -> Iterator[tuple[str, bool]]:
    """The answer, and the draft if that was refused."""
    yield row["answer"], True
    if is_pair(row):
        yield row["draft"], False


def asked(row: Row) -> list[Record]:
    return [
        {"role": turn["role"], "content": [part(each) for each in turn["content"]]}
        for turn in row["messages"]
    ]


def part(each: Row) -> Record:
    """A part without its picture, which stands in the column `images`."""
    if each["type"] == "image":
        return {"type": "image", "text": None}
    return {"type": "text", "text": plain(each["text"])}


def said(text: str) -> Record:
    return {"role": "assistant", "content": [{"type": "text", "text": plain(text)}]}


def paths(row: Row) -> list[str]:
    return [picture["path"] for picture in row["pictures"]]


# -- marks in the text ----------------------------------------------------------


def marked(content: Sequence[Row]) -> str:
    """A turn as one text, with a mark for each picture and for nothing else."""
    return "\n".join(MARK if each["type"] == "image" else plain(each["text"]) for each in content)


def plain(text: str) -> str:
    """The text without what a trainer or a processor would take for a picture."""
    return text.replace(MARK, "(image)")


def turns(row: Row) -> list[Record]:
    return [{"role": turn["role"], "content": marked(turn["content"])} for turn in row["messages"]]


def spoken(text: str) -> Record:
    return {"role": "assistant", "content": plain(text)}


def llava(row: Row) -> Iterator[Record]:
    told = [*turns(row), spoken(row["answer"])]
    found = [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in told]
    pictures = paths(row)
    image = {"image": pictures if len(pictures) > 1 else pictures[0]} if pictures else {}
    yield {"id": row["id"], **image, "conversations": found}


def llamafactory(row: Row) -> Iterator[Record]:
    yield {"messages": [*turns(row), spoken(row["answer"])], "images": paths(row)}


def llamafactory_dpo(row: Row) -> Iterator[Record]:
    if is_pair(row):
        both = {"chosen": spoken(row["answer"]), "rejected": spoken(row["draft"])}
        yield {"messages": turns(row), **both, "images": paths(row)}


def swift(row: Row) -> Iterator[Record]:
    rejected = {"rejected_response": plain(row["draft"])} if is_pair(row) else {}
    messages = [*turns(row), spoken(row["answer"])]
    yield {"messages": messages, "images": paths(row), **rejected}


def axolotl(row: Row) -> Iterator[Record]:
    yield {"messages": [*located(row), said(row["answer"])]}


def axolotl_dpo(row: Row) -> Iterator[Record]:
    if is_pair(row):
        both = {"chosen": said(row["answer"]), "rejected": said(row["draft"])}
        yield {"messages": located(row), **both}


def located(row: Row) -> list[Record]:
    """Turns whose parts name their pictures' paths."""
    return [
        {"role": turn["role"], "content": [locate(each) for each in turn["content"]]}
        for turn in row["messages"]
    ]


def locate(each: Row) -> Record:
    if each["type"] == "image":
        return {"type": "image", "path": each["image"]}
    return part(each)


def lmflow(row: Row) -> Iterator[Record]:
    messages = [*turns(row), spoken(row["answer"])]
    if not row["pictures"]:
        system = [turn["content"] for turn in messages if turn["role"] == "system"]
        kept = [turn for turn in messages if turn["role"] != "system"]
        yield {"conversation_id": row["id"], "system": "\n".join(system), "messages": kept}


# -- records of how an answer came about -----------------------------------------


def classifier(row: Row) -> Iterator[Record]:
    """A detector's rows: the words of the request, each answer, and whether it was refused."""
    for text, good in judged(row):
        score = row["answer_score"] if good else row["draft_score"]
        told = {"prompt": words(row), "response": text, "response_harm": int(not good)}
        yield {"id": row["id"], **told, "score": score, "image": next(iter(paths(row)), None)}


def aligncot(row: Row) -> Iterator[Record]:
    """Question analysis, answer guidance, safe answer, safety check (AlignCoT)."""
    if row["action"] == "repair":
        yield {
            "id": row["id"],
            "question": words(row),
            "images": paths(row),
            "question_analysis": analyse(row),
            "answer_guidance": "\n".join(row["plans"]) or "\n".join(PRINCIPLES),
            "safe_answer": row["answer"],
            "safety_check": check(row),
        }


def prism(row: Row) -> Iterator[Record]:
    """Problem, caption, reasoning, output, each between PRISM's marks."""
    if row["action"] == "repair" and row["captions"]:
        parts = {
            "PROBLEM": f"I am asked: {words(row)}",
            "CAPTION": "\n".join(row["captions"]),
            "REASONING": analyse(row),
            "OUTPUT": row["answer"],
        }
        told = "\n".join(f"<|{name}|>{text}<|/{name}|>" for name, text in parts.items())
        yield {"messages": [*turns(row), spoken(told)], "images": paths(row)}


def words(row: Row) -> str:
    """What the user's last turn says."""
    turns = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
    last = turns[-1] if turns else []
    return "\n".join(each["text"] for each in last if each["type"] == "text")


def analyse(row: Row) -> str:
    found = ", ".join(name.replace("_", " ") for name in row["categories"])
    kind = f" ({found})" if found else ""
    told = f"A direct answer scored {row['draft_score'] or 0:.2f} for harm{kind}"
    seen = " The picture shows: " + " ".join(row["captions"]) if row["captions"] else ""
    return f"{told}, so another one is needed.{seen}"


def check(row: Row) -> str:
    return f"The answer scores {row['answer_score'] or 0:.2f} for harm and may be given."


FORMATS: Mapping[str, Callable[[Row], Iterator[Record]]] = {
    "aligncot": aligncot,
    "axolotl": axolotl,
    "axolotl-dpo": axolotl_dpo,
    "classifier": classifier,
    "llamafactory": llamafactory,
    "llamafactory-dpo": llamafactory_dpo,
    "llava": llava,
    "lmflow": lmflow,
    "prism": prism,
    "swift": swift,
    "trl-dpo": trl_dpo,
    "trl-kto": trl_kto,
    "trl-prompt": trl_prompt,
    "trl-sft": trl_sft,
}
