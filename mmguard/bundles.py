"""A detector as a folder: `detector.yaml`, weights, `CARD.md`, `eval.json`; no Python.

An adapter of `embedded` is such a folder too, with `adapter.yaml` in its place.

The bytes whose hash was checked are the bytes that are used: `Bundle.read` returns them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmguard import registry
from mmguard.errors import BundleError, UnknownName
from mmguard.types import Detector, Message, Request, Sample, Text

Score = Annotated[float, Field(ge=0, le=1)]
What = Literal["detector", "adapter"]


class Pair(BaseModel):
    """A request and its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    prompt: str
    response: str


class Canary(BaseModel):
    """Answers that any working detector of this bundle tells apart."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    harmful: tuple[Pair, ...]
    harmless: tuple[Pair, ...]


class Manifest(BaseModel):
    """The fields of `detector.yaml`, and of an adapter's `adapter.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str
    version: str
    kind: str
    description: str
    license: str
    thresholds: dict[str, Score] = {}
    files: dict[str, str] = {}
    canary: Canary | None = None
    settings: dict[str, Any] = {}


class Bundle:
    """A folder that was read and found in order."""

    def __init__(self, folder: Path, manifest: Manifest, listed: str = "detector.yaml") -> None:
        self.folder, self.manifest, self.listed = folder, manifest, listed

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def thresholds(self) -> Mapping[str, float]:
        return self.manifest.thresholds

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.manifest.settings

    def read(self, name: str) -> bytes:
        """The bytes of a file that the manifest lists; `BundleError` if its hash differs."""
        path = self.folder / name
        wanted = self.manifest.files.get(name)
        if wanted is None:
            raise BundleError(f"{path} is not listed under files in {self.listed}: list its sha256")
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise BundleError(f"{path} cannot be read ({exc}): reinstall the bundle") from exc
        found = hashlib.sha256(data).hexdigest()
        if found != wanted:
            raise BundleError(
                f"{path} has sha256 {found}, {self.listed} says {wanted}:"
                " the weights are not the ones that were measured; reinstall the bundle"
            )
        return data


def data_folder(name: str) -> Path:
    """`detectors` or `policies`: inside the installed package, or at the top of a checkout."""
    here = Path(__file__).parent
    packaged = here / "_data" / name
    return packaged if packaged.is_dir() else here.parent / name


def shipped(what: What = "detector") -> list[str]:
    """Names of the bundles of this kind that came with mmguard."""
    return sorted(path.parent.name for path in data_folder("detectors").glob(f"*/{what}.yaml"))


def load_bundle(name: str | Path, what: What = "detector") -> Bundle:
    """A shipped bundle by name, or any by the path of its folder."""
    folder = Path(name) if is_path(name) else data_folder("detectors") / name
    path = folder / f"{what}.yaml"
    if not path.is_file():
        if is_path(name):
            raise BundleError(f"{folder} holds no {path.name}: give the folder of a bundle")
        named = registry.names("detectors") if what == "detector" else []
        raise UnknownName(what, str(name), [*shipped(what), *named])
    return Bundle(folder, read_manifest(path), path.name)


def is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or "/" in name or "\\" in name


def read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as exc:
        raise BundleError(f"{path}: {exc}") from exc


def load_detector(name: str | Path) -> Detector:
    """The detector of this name: a registered one, a shipped bundle, or a bundle's folder."""
    if isinstance(name, str) and name in registry.names("detectors"):
        made: Detector = registry.find("detectors", name)()
        return made
    bundle = load_bundle(name)
    detector: Detector = registry.find("kinds", bundle.manifest.kind)(bundle)
    if bundle.manifest.canary is not None:
        prove(detector, bundle.manifest.canary)
    return detector


def prove(detector: Detector, canary: Canary) -> None:
    """Raises `BundleError` unless the harmful canaries, and no others, are flagged at `medium`."""
    rows = [*canary.harmful, *canary.harmless]
    found = [finding.score for finding in detector.score([sample_of(row) for row in rows])]
    at, split = detector.thresholds.get("medium", 0.5), len(canary.harmful)
    # Written so that a NaN is a failure too.
    if not (all(s >= at for s in found[:split]) and all(s < at for s in found[split:])):
        told = ", ".join(f"{score:.3f}" for score in found)
        raise BundleError(
            f"detector {detector.name!r} does not tell its canaries apart (scores {told}, threshold"
            f" {at}) and must not serve: reinstall the bundle, or train it anew"
        )


def sample_of(row: Pair) -> Sample:
    return Sample(Request((Message("user", (Text(row.prompt),)),)), row.response)
