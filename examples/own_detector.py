"""Write a detector of your own, give it to a policy, and try both without any weights."""

from collections.abc import Sequence

from mmguard import Finding, Sample, wrap
from mmguard.models.scripted import ScriptedModel


class CardNumbers:
    """Finds answers that hold what may be a payment card's number: 16 digits."""

    name = "card-numbers"
    thresholds = {"low": 0.9, "medium": 0.5, "high": 0.5}  # noqa: RUF012

    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        return [self.find(sample) for sample in samples]

    def find(self, sample: Sample) -> Finding:
        digits = sum(character.isdigit() for character in sample.reply or "")
        found = float(digits >= 16)
        return Finding(self.name, found, categories={"privacy": found}, chars=sample.chars)


POLICY = {
    "output": [{"detector": "card-numbers", "action": "block"}],
    "refusals": {"privacy": "I can't repeat card numbers."},
}


def main() -> str:
    model = ScriptedModel(lambda request: "It is 4111 1111 1111 1111.")
    guarded = wrap(model, policy=POLICY, detectors={"card-numbers": CardNumbers()})
    answer = guarded.chat("What is the number on this card?").text
    print(answer)
    return answer


if __name__ == "__main__":
    main()
