"""Bundles, the registry, and a plugin package that uses its doors."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmguard import registry, wrap
from mmguard.bundles import load_bundle, load_detector, shipped
from mmguard.errors import BundleError, UnknownName
from mmguard.models.scripted import ScriptedModel
from mmguard.registry import PluginError
from tests.world import BAD

MANIFEST = """
name: mine
version: "1"
kind: linear
description: a test
license: Apache-2.0
thresholds: {{medium: 0.5}}
files: {{weights.npz: '{sha}'}}
"""


def make_bundle(folder: Path, data: bytes = b"weights", sha: str | None = None) -> Path:
    (folder / "weights.npz").write_bytes(data)
    text = MANIFEST.format(sha=sha or hashlib.sha256(data).hexdigest())
    (folder / "detector.yaml").write_text(text, encoding="utf-8")
    return folder


def test_reads_what_was_hashed(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path))
    assert bundle.read("weights.npz") == b"weights"
    assert bundle.settings == {}


def test_wrong_hash(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not the ones that were measured"):
        load_bundle(make_bundle(tmp_path, sha="0" * 64)).read("weights.npz")


def test_wrong_hash_stops_loading(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="sha256"):
        load_detector(make_bundle(tmp_path, sha="0" * 64))


def test_unlisted_and_missing_files(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path))
    with pytest.raises(BundleError, match="not listed"):
        bundle.read("other.npz")
    (tmp_path / "weights.npz").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.read("weights.npz")


def test_bad_manifests(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no detector\.yaml"):
        load_bundle(tmp_path)
    (tmp_path / "detector.yaml").write_text("name: [", encoding="utf-8")
    with pytest.raises(BundleError, match=r"detector\.yaml"):
        load_bundle(tmp_path)
    (tmp_path / "detector.yaml").write_text("name: x\nweight: 3\n", encoding="utf-8")
    with pytest.raises(BundleError, match="weight"):
        load_bundle(tmp_path)


def test_unknown_detector() -> None:
    with pytest.raises(UnknownName, match="did you mean 'phrases'"):
        load_detector("phrasse")


def test_every_shipped_bundle_loads() -> None:
    assert {"phrases", "response-harm-linear"} <= set(shipped())
    for name in shipped():
        detector = load_detector(name)
        assert detector.name == name
        assert set(detector.thresholds) >= {"low", "medium", "high"}
        assert detector.thresholds["high"] <= detector.thresholds["medium"]
        assert (load_bundle(name).folder / "CARD.md").is_file()
        assert (load_bundle(name).folder / "eval.json").is_file()


def test_registry_names() -> None:
    assert registry.names("steps")[:2] == ["caption", "detoxify"]
    with pytest.raises(UnknownName, match="unknown step 'captio'"):
        registry.find("steps", "captio")


PLUGIN = f"""
from mmguard.models.scripted import ScriptedDetector
from mmguard.types import Finding, Reply, TextMessage, TextRequest

def shout():
    return ScriptedDetector(lambda s: float({BAD!r} in (s.reply or "")), name="shout")

def whisper(case):
    request = TextRequest((TextMessage("user", "say it softly"),))
    return (yield from case.ask("whisper", "target", request))
"""
POINTS = """
[mmguard.detectors]
shout = loud_plugin:shout
broken = loud_plugin:nothing_here
[mmguard.steps]
whisper = loud_plugin:whisper
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[None]:
    """An installed package, as an installer leaves it: a module and its metadata."""
    info = tmp_path / "loud_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: loud-plugin\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(POINTS, encoding="utf-8")
    (tmp_path / "loud_plugin.py").write_text(PLUGIN, encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    registry.plugins.cache_clear()
    yield
    sys.path.remove(str(tmp_path))
    sys.modules.pop("loud_plugin", None)
    registry.plugins.cache_clear()
    registry.find.cache_clear()


@pytest.mark.usefixtures("plugin")
def test_plugin_adds_detector_and_step() -> None:
    model = ScriptedModel(lambda r: "soft" if "softly" in r.messages[-1].parts[0].text else BAD)  # type: ignore[union-attr]  # words only
    policy = {"output": [{"detector": "shout"}], "repair": ["whisper"]}
    guarded = wrap(model, policy=policy).chat("hello")
    assert (guarded.text, guarded.step) == ("soft", "whisper")
    assert guarded.calls[-1].stage == "whisper"


@pytest.mark.usefixtures("plugin")
def test_broken_plugin_is_named() -> None:
    with pytest.raises(PluginError, match=r"plugin 'broken' \(loud_plugin:nothing_here\)"):
        load_detector("broken")
