"""Policy files: what loads, what is refused, and how clearly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmguard.bundles import data_folder
from mmguard.errors import PolicyError, UnknownName
from mmguard.policy import Policy, load_policy, presets, schema
from tests.world import make_policy

NAMES = ["audit", "balanced", "ecso", "off", "protector", "strict"]
CHECK = "output:\n  - detector: phrases\n"


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_presets() -> None:
    assert presets() == NAMES
    for name in NAMES:
        policy = load_policy(name)
        assert policy.name == name
        assert policy.description


def test_preset_facts() -> None:
    assert load_policy("audit").mode == "audit"
    assert load_policy("off").models == {"target"}
    assert load_policy("ecso").judge is not None
    assert load_policy("protector").repair == ("detoxify",)
    assert load_policy("protector").output[0].alone
    assert load_policy("balanced").principles == make_policy().principles
    assert load_policy("audit").output == load_policy("balanced").output


def test_schema_is_fresh() -> None:
    shipped = json.loads((data_folder("policies") / "schema.json").read_text(encoding="utf-8"))
    assert shipped == schema(), "run: mmguard policies schema > policies/schema.json"


BAD_FILES = [
    (
        "output:\n  - detector: phrases\n    strictness: hihg\n",
        3,
        "output[0].strictness: 'hihg'",
        "low, medium, high",
    ),
    (
        "output:\n  - detector: phrases\n    strictness: 1.5\n",
        3,
        "output[0].strictness: 1.5",
        "0 to 1",
    ),
    ("output:\n  - detector: phrases\n    strictness: true\n", 3, "strictness: True", "0 to 1"),
    ("output:\n  - strictness: low\n", 2, "output[0].detector:", "missing; add it"),
    (CHECK + "colour: red\n", 3, "colour: 'red'", "no such field"),
    (CHECK + "stream: {mode: window, window: 100}\n", 3, "stream.mode: 'window'", "needs hold"),
    (CHECK + "stream: {mode: window, hold: 100}\n", 3, "stream.mode: 'window'", "needs window"),
    (CHECK + "stream: {hold: 100}\n", 3, "stream.hold: 100", "mode: window"),
    (CHECK + "repair: [captoin]\n", 3, "repair: ['captoin']", "did you mean 'caption'?"),
    (CHECK + "repair: []\n", 2, "output[0].action: 'repair'", "name a step"),
    (
        "repair: []\non_error: repair\noutput:\n  - {detector: a, action: block}\n",
        2,
        "on_error: 'repair'",
        "name a step",
    ),
    ("output:\n  - detector: judge\n", 2, "output[0].detector: 'judge'", "names no model"),
    (
        "output:\n  - detector: phrases\n    grey: high\n",
        2,
        "output[0].detector: 'phrases'",
        "names no model",
    ),
    (
        "judge: {model: target}\ninput:\n  - detector: judge\n" + CHECK,
        3,
        "input[0].detector",
        "move this check",
    ),
    ("input:\n  - detector: self\n" + CHECK, 2, "input[0].detector: 'self'", "move this check"),
    (CHECK + "    alone: true\ninput: [{detector: a, alone: true}]\n", 4, "input[0].alone", "move"),
    ("output: [{detector: self, alone: true}]\n", 1, "output[0].alone: True", "remove alone"),
    (CHECK + "deadline: 0\n", 3, "deadline: 0", "greater than 0"),
    (CHECK + "excise: {most: 2}\n", 3, "excise.most: 2", "less than or equal to 1"),
    (CHECK + "prompts:\n  detoxify: '{plan} {answer}'\n", 4, "detoxify", "{plan} is no blank"),
    (CHECK + "judge: {image: false}\n", 3, "judge.model:", "missing; add it"),
    ("description: no checks\n", 1, "output: []", "mode: off"),
    ("mode: off\n" + CHECK, 1, "mode: 'off'", "remove input and output"),
    (CHECK + "prompts:\n  judge: hi {query}\n", 4, "prompts.judge: 'hi {query}'", "lacks {answer}"),
    (CHECK + "prompts:\n  caption: '{query} {name}'\n", 4, "prompts.caption", "{name} is no blank"),
    (CHECK + "resample: {tries: 0}\n", 3, "resample.tries: 0", "greater than or equal to 1"),
    (CHECK + "version: 2\n", 3, "version: 2", "should be 1"),
    ("output: {a: [}\n", 1, "not valid YAML", ""),
    (CHECK + "on_error: pass\non_error: block\n", 4, "not valid YAML", "written twice"),
    ("- a list\n", 1, "a policy is a mapping", "list"),
    ("extends: balancd\n", 1, "extends 'balancd'", "did you mean 'balanced'?"),
    ("extends: [a, b]\n", 1, "extends ['a', 'b']", "name one preset"),
    ("extends: mine.yaml\n", 1, "extends 'mine.yaml'", "a circle"),
    ("extends: ./gone.yaml\n", 0, "gone.yaml", "cannot be read"),
]


@pytest.mark.parametrize(("text", "line", "field", "fix"), BAD_FILES)
def test_bad_files(tmp_path: Path, text: str, line: int, field: str, fix: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(write(tmp_path, text))
    message = str(caught.value)
    assert field in message
    assert fix in message
    if line:
        assert message.startswith(f"{tmp_path / 'mine.yaml'}:{line}:")


def test_error_points_into_the_extended_file(tmp_path: Path) -> None:
    write(tmp_path, CHECK + "caption:\n  max_tokens: 0\n", "below.yaml")
    above = write(tmp_path, "extends: ./below.yaml\ncaption: {model: other}\n")
    with pytest.raises(PolicyError, match=r"below\.yaml:4: caption\.max_tokens: 0"):
        load_policy(above)


def test_all_errors_at_once(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(write(tmp_path, CHECK + "one: 1\ntwo: 2\n"))
    assert len(str(caught.value).splitlines()) == 2


def test_extends_merges_fields_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path, "extends: balanced\nrefusals: {default: Nope.}\n", "below.yml")
    policy = load_policy(write(tmp_path, "extends: below.yml\nrepair: [detoxify]\n"))
    assert policy.refusal("anything") == "Nope."
    assert "crisis" in policy.refusal("self_harm")
    assert policy.repair == ("detoxify",)
    assert policy.output == load_policy("balanced").output
    assert policy.name == "mine"


def test_names(tmp_path: Path) -> None:
    assert load_policy(write(tmp_path, CHECK)).name == "mine"
    assert load_policy(write(tmp_path, CHECK + "name: yours\n")).name == "yours"
    with pytest.raises(UnknownName, match="did you mean 'strict'"):
        load_policy("strct")
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path / "none.yaml")


def test_mapping_and_policy() -> None:
    policy = load_policy({"output": [{"detector": "phrases"}]})
    assert load_policy(policy) is policy
    with pytest.raises(PolicyError, match=r"policy:1: output: \[\]"):
        load_policy({})


def test_tags_tell_contents_apart() -> None:
    one, two = make_policy(), make_policy(on_error="pass")
    assert one.tag != two.tag
    assert one.tag == make_policy().tag
    assert one.bind({"harm": {"medium": 0.4}}).tag == one.tag


def bind(words: dict[str, float], **check: Any) -> Policy:
    judge = {"model": "target"}
    return make_policy(output=[{"detector": "harm", **check}], judge=judge).bind({"harm": words})


def test_bind() -> None:
    policy = bind({"low": 0.9, "medium": 0.5, "high": 0.1}, strictness="low", grey="high")
    assert policy.output[0].threshold == 0.9
    assert policy.output[0].grey == 0.1
    rules = {"hate": {"strictness": 0.3}, "privacy": {"strictness": "high"}}
    bound = bind({"medium": 0.5, "high": 0.1}, categories=rules).output[0]
    assert bound.categories["hate"].threshold == 0.3
    assert bound.categories["privacy"].threshold == 0.1


def test_bind_refuses() -> None:
    with pytest.raises(PolicyError, match="no threshold for 'medium'"):
        bind({})
    with pytest.raises(PolicyError, match=r"grey 'low' starts at 0\.9, not below"):
        bind({"low": 0.9, "medium": 0.5}, grey="low")
    with pytest.raises(PolicyError, match="is not bound"):
        _ = make_policy().output[0].threshold


def test_judge_words_are_bound() -> None:
    policy = make_policy(judge={"model": "target", "strictness": "high"})
    bound = policy.bind({"harm": {"medium": 0.5}})
    assert bound.second("block").threshold == 0.3
    assert make_policy().second("block").threshold == 0.0


def test_names_of_what_is_asked() -> None:
    policy = make_policy(
        judge={"model": "a"}, rewrite={"model": "b"}, resample={"helper": "c"}, deadline=2
    )
    assert policy.models == {"target", "a", "b", "c"}
    assert policy.detectors == {"harm"}


def test_fields_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_policy().mode = "off"


def test_balanced_tells_every_field() -> None:
    """The default preset is the reference: each field stands in it, if only in a comment."""
    text = (data_folder("policies") / "balanced.yaml").read_text(encoding="utf-8")
    made = schema()
    parts = [made, *(part for name, part in made["$defs"].items() if name != "Prompts")]
    fields = {field for part in parts for field in part["properties"]} - {"name", "extends"}
    assert [field for field in sorted(fields) if f"{field}:" not in text] == []
    prompts = made["$defs"]["Prompts"]["properties"]
    assert [name for name in prompts if name not in text.split("# What models are told")[1]] == []
