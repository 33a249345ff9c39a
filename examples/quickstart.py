"""Guard a HuggingFace MLLM: python examples/quickstart.py MODEL PICTURE QUESTION."""

import sys

from transformers import AutoModelForImageTextToText, AutoProcessor

from mmguard import wrap


def main(name: str, picture: str, question: str) -> None:
    processor = AutoProcessor.from_pretrained(name)
    model = AutoModelForImageTextToText.from_pretrained(name)
    guarded = wrap(model, processor, policy="balanced").chat(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": picture},
                    {"type": "text", "text": question},
                ],
            }
        ],
        max_new_tokens=200,
    )
    print(guarded.text)
    print(f"[{guarded.action} by {guarded.policy}: {guarded.step}]", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:4])
