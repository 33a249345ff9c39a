"""Options in OpenAI's names and transformers': what they do to a real, tiny model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from mmguard.errors import InputError
from mmguard.models.hf import converse
from mmguard.models.options import Plan, cut, held, plan
from mmguard.types import Reply, Request
from tests.chats import adapt, caught, own, seen, told
from tests.tiny import EOS, PAD, build

KNOWN = frozenset({"num_beams", "top_p", "top_k", "do_sample", "generation_config"})


def test_names_are_translated() -> None:
    options = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "stop": "x", "seed": 4}
    arguments = {"max_new_tokens": 3, "do_sample": True, "temperature": 0.5, "top_p": 0.9}
    assert plan(options, KNOWN) == Plan(arguments, ("x",), 4)
    assert plan({"max_completion_tokens": 3}, KNOWN) == plan({"max_new_tokens": 3}, KNOWN)
    assert plan({"temperature": 0}, KNOWN) == Plan({"do_sample": False})
    assert plan({"stop_strings": ["a", ""], "top_k": None}, KNOWN) == Plan(stop=("a",))
    assert plan({"logprobs": True}, KNOWN).top == 20
    assert plan({"logprobs": True, "top_logprobs": 3}, KNOWN).top == 3
    assert plan({"num_beams": 2, "user": "u", "n": 1, "store": True}, KNOWN).arguments == {
        "num_beams": 2
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "red"}, "option 'colour' means nothing .* remove it"),
        ({"n": 2}, "n=2"),
        ({"num_return_sequences": 2}, "num_return_sequences=2"),
        ({"presence_penalty": 0.5}, "use repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens=0: give a whole number from 1"),
        ({"max_tokens": "9"}, "max_tokens='9'"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"stop": 3}, "stop=3"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        adapt().generate([seen(), seen(**options)])
    with pytest.raises(InputError, match=message):
        list(adapt().stream(seen(**options)))


def test_what_changes_nothing_is_ignored() -> None:
    options: dict[str, Any] = {
        "user": "u",
        "n": 1,
        "stream": False,
        "presence_penalty": 0,
        "output_scores": True,
    }
    reply = adapt().generate([seen(**options, return_dict_in_generate=True, temperature=0)])[0]
    assert reply.tokens == own(build("llava"), seen())


def test_other_options_reach_generate() -> None:
    how: dict[str, Any] = {"num_beams": 3, "repetition_penalty": 1.5}
    for request in (seen(**how), told(**how)):
        assert adapt().generate([request])[0].tokens == own(build("llava"), request, **how)
    assert own(build("llava"), seen(), **how) != own(build("llava"), seen())


def test_beams_stream_in_one_piece() -> None:
    request = seen(num_beams=2)
    text, last = adapt().stream(request)
    assert last == adapt().generate([request])[0]
    assert isinstance(last, Reply)
    assert text == last.text


def test_hooks_reach_generate() -> None:
    def only(batch: int, tokens: Any) -> list[int]:
        return [9]

    reply = adapt().generate([seen(prefix_allowed_tokens_fn=only), seen()])[0]
    assert set(reply.tokens) == {9}

    def enough(ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(ids),), True)

    reply = adapt().generate([seen(stopping_criteria=[enough]), seen()])[0]
    assert len(reply.tokens) == 1


# -- ends ---------------------------------------------------------------------


def test_lengths_and_ends() -> None:
    model = adapt()
    whole = model.generate([seen(max_tokens=30)])[0]
    assert (len(whole.tokens), whole.finish) == (30, "length")
    end = whole.tokens[4]
    ended = model.generate([seen(max_tokens=30, eos_token_id=end)])[0]
    assert ended.finish == "stop"
    assert ended.tokens == whole.tokens[: whole.tokens.index(end) + 1]
    assert ended.usage.completion == len(ended.tokens)
    config = GenerationConfig(eos_token_id=[EOS, end], max_new_tokens=30)
    assert model.generate([seen(generation_config=config, max_tokens=None)])[0] == ended


def test_a_generation_config_is_honoured_and_left_alone() -> None:
    model = adapt()
    config = GenerationConfig(max_new_tokens=3, num_beams=2, num_return_sequences=2)
    before = config.to_dict()
    request = seen(generation_config=config, max_tokens=None)
    assert len(model.generate([request])[0].tokens) == 3
    assert len(model.generate([seen(generation_config=config, max_tokens=5)])[0].tokens) == 5
    assert config.to_dict() == before


def test_a_config_without_an_end_has_the_models() -> None:
    model = adapt()
    model.model.generation_config.eos_token_id = end = model.generate([seen()])[0].tokens[2]
    try:
        config = GenerationConfig(max_new_tokens=30)
        reply = model.generate([seen(generation_config=config, max_tokens=None)])[0]
    finally:
        model.model.generation_config.eos_token_id = EOS
    assert reply.finish == "stop"
    assert reply.tokens[-1] == end


def test_rows_stop_on_their_own() -> None:
    """Rows of a batch end early, by a token or a string; their padding is no part of them."""
    model = adapt()
    first = model.generate([seen(max_tokens=12)])[0]
    for how in ({"eos_token_id": first.tokens[3]}, {"stop": first.text[4:6]}):
        requests = [seen(max_tokens=12, **how), seen("yes?", 5, max_tokens=12, **how)]
        alone = [model.generate([request])[0] for request in requests]
        together = model.generate(requests)
        assert together == alone
        assert [reply.tokens for reply in together] == [reply.tokens for reply in alone]
        assert alone[0].finish == "stop"
        assert len(alone[0].tokens) < len(alone[1].tokens)
        assert PAD not in together[0].tokens


def test_stop_strings() -> None:
    model = adapt()
    text = model.generate([seen(max_tokens=30)])[0].text
    word = text[6:8]
    config = GenerationConfig(stop_strings=[word])
    for how in ({"stop": word}, {"stop": ["\u2603 never", word]}, {"generation_config": config}):
        request = seen(max_tokens=30, **how)
        reply = model.generate([request])[0]
        assert (reply.text, reply.finish) == (text[: text.find(word)], "stop")
        *pieces, last = model.stream(request)
        assert "".join(str(piece) for piece in pieces) == reply.text
        assert last == reply


def test_stop_strings_are_not_sought_in_the_prompt() -> None:
    """The prompt ends in a space, which with the answer's beginning makes the stop string."""
    model = adapt()
    whole = model.generate([told()])[0]
    for word in ("assistant", " " + whole.text[0]):
        assert model.generate([told(stop=word)])[0] == whole


def test_stop_helpers() -> None:
    assert cut("one two", ("tw", "e t")) == ("on", True)
    assert cut("one", ("x",)) == ("one", False)
    assert held("say st", ("stop",)) == 2
    assert held("say", ("stop",)) == 0


# -- draws --------------------------------------------------------------------


def test_seeds() -> None:
    model = adapt()
    draws = [model.generate([seen(temperature=1.5, seed=s)])[0].tokens for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    both = model.generate([seen(temperature=1.5, seed=1), seen(temperature=1.5, seed=1)])
    assert [reply.tokens for reply in both] == [draws[0]] * 2
    *_, streamed = model.stream(seen(temperature=1.5, seed=1))
    assert isinstance(streamed, Reply)
    assert streamed.tokens == draws[0]


def test_a_seed_is_the_models_own_seed() -> None:
    reply = adapt().generate([seen(temperature=1.5, seed=3)])[0]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert reply.tokens == own(build("llava"), seen(), do_sample=True, temperature=1.5)


def test_draws_leave_the_process_as_it_was() -> None:
    state = torch.random.get_rng_state()
    adapt().generate([seen(temperature=1.5, seed=1)])
    adapt().generate([seen()])
    assert torch.equal(state, torch.random.get_rng_state())


def test_seeded_rows_of_a_model_that_draws_by_default() -> None:
    model = adapt()
    requests = [seen(seed=1, max_tokens=8), seen("yes?", 3, seed=1, max_tokens=8)]
    model.model.generation_config.do_sample = True
    try:
        alone = [model.generate([request])[0].tokens for request in requests]
        assert [reply.tokens for reply in model.generate(requests)] == alone
    finally:
        model.model.generation_config.do_sample = False


def test_rows_of_one_seed_share_a_batch_if_nothing_is_drawn() -> None:
    model = adapt()
    with caught(model.model) as calls:
        model.generate([seen(seed=1, max_tokens=1), seen("yes?", seed=1, max_tokens=1)])
    assert [len(call["input_ids"]) for call in calls] == [2]


# -- first tokens -------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"temperature": 2.0, "seed": 1}])
def test_first_tokens_are_the_models_probabilities(how: dict[str, Any]) -> None:
    model = adapt()
    requests = [seen(**how, logprobs=True, top_logprobs=5), seen("no", 2, **how, top_logprobs=5)]
    firsts = [reply.first for reply in model.generate(requests)]
    for request, first in zip(requests, firsts, strict=True):
        assert 1 <= len(first) <= 5
        assert 0 < sum(first.values()) <= 1
        assert first == pytest.approx(expected(request), rel=1e-3)
        *_, last = model.stream(request)
        assert isinstance(last, Reply)
        assert last.first == pytest.approx(first, rel=1e-3)


def expected(request: Request) -> dict[str, float]:
    """By one forward call of the model."""
    model = adapt()
    with torch.no_grad():
        logits = model.model(**model.encode([converse(request)])).logits[0, -1]
    shares, ids = logits.softmax(-1).topk(5)
    found: dict[str, float] = {}
    for share, token in zip(shares.tolist(), ids.tolist(), strict=True):
        text = model.tokenizer.decode([token])
        found[text] = found.get(text, 0.0) + share
    return found


def test_first_tokens_only_where_asked_for() -> None:
    assert adapt().generate([seen()])[0].first == {}
    everything = adapt().generate([seen(top_logprobs=10**6)])[0].first
    assert sum(everything.values()) == pytest.approx(1)
