"""The products: what is installed, how each is set up to ban one phrase, and how it is started.

All check answers only, and all but the bare ones each of them, as mmguard's phrases do here.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mmguard.bench.host import ANSWER, BANNED
from mmguard.bench.server import CHAT, PHRASES, Process

LOCKS = Path(__file__).parent / "locks"
# Seconds that a server may take to answer its first request.
START = 120
# No product may reach out while it is timed.
ALONE = {
    "DO_NOT_TRACK": "1",
    "NEMO_GUARDRAILS_NO_USAGE_STATS": "1",
    "NEMO_GUARDRAILS_DISABLE_CHAT_UI": "true",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    # As the others here: whoever reaches it may ask.
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "GUARDRAILS_RUN_SYNC": "false",
    "OTEL_SDK_DISABLED": "true",
    "OPENAI_API_KEY": "none",
    "NO_PROXY": "127.0.0.1",
}
Write = Callable[[Path, str], list[str]]


@dataclass(frozen=True, slots=True)
class Place(Process):
    """A product's server: its whole tree of processes counts as its memory."""

    extra: bytes = b""
    prefix: bytes = b""

    def dress(self, body: bytes) -> bytes:
        """`extra` is a field more, `prefix` stands before the model's name."""
        body = body.replace(b'"model":"', b'"model":"' + self.prefix, 1)
        return body[:-1] + self.extra + b"}"

    def sound(self, answer: bytes, stream: bool) -> bool:
        """Longer than an excuse; how streams end differs, and is told elsewhere."""
        return len(answer) > len(ANSWER) and b'"error"' not in answer[:100]

    def memory(self) -> float | None:
        shares = [Process(0, pid).memory() for pid in tree(self.pid)]
        return round(sum(share or 0 for share in shares), 1)

    def cpu(self) -> float:
        return sum(Process(0, pid).cpu() for pid in tree(self.pid))


def tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield from tree(int(child))


@dataclass(frozen=True, slots=True)
class Product:
    """One way to run one package; `write` sets it up in a folder and gives the command's words."""

    package: str
    write: Write
    # Whether it was told what is banned.
    guards: bool = True
    path: str = CHAT
    extra: bytes = b""
    prefix: bytes = b""
    env: Mapping[str, str] = field(default_factory=dict)


# -- how each is set up -----------------------------------------------------------


def litellm(*filters: dict[str, object]) -> Write:
    def write(folder: Path, url: str) -> list[str]:
        known = {"model": "openai/*", "api_base": url, "api_key": "none"}
        models = [{"model_name": "*", "litellm_params": known}]
        settings = {"model_list": models, "guardrails": list(filters)}
        (folder / "litellm.yaml").write_text(json.dumps(settings), encoding="utf-8")
        words = ["litellm", "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1"]
        return [*words, "--num_workers", "1", "--port"]

    return write


# As it comes: this guard of theirs holds the end of a stream back by itself.
FILTER: dict[str, object] = {
    "guardrail_name": "banned",
    "litellm_params": {
        "guardrail": "litellm_content_filter",
        "mode": "post_call",
        "default_on": True,
        "blocked_words": [{"keyword": BANNED, "action": "BLOCK"}],
    },
}


def nemo(folder: Path, url: str) -> list[str]:
    """Its own check of answers by regular expression, also of streams, before they leave."""
    patterns = {"patterns": [BANNED], "case_insensitive": True}
    rails = {
        "config": {"regex_detection": {"output": patterns}},
        "output": {
            "flows": ["regex check output"],
            "streaming": {"enabled": True, "stream_first": False},
        },
    }
    main = {"type": "main", "engine": "openai", "model": "mock", "parameters": {"base_url": url}}
    settings = {"models": [main], "passthrough": True, "rails": rails}
    (folder / "one").mkdir()
    (folder / "one/config.yml").write_text(json.dumps(settings), encoding="utf-8")
    words = ["nemoguardrails", "server", "--config", str(folder), "--default-config-id", "one"]
    return [*words, "--disable-chat-ui", "--port"]


GUARDS = """
from guardrails import AsyncGuard
from guardrails_ai.ban_list import BanList

banned = AsyncGuard(id="banned", name="banned").use(
    BanList(banned_words=[{banned!r}], max_l_dist=0, on_fail="exception")
)
"""


def guardrails(folder: Path, url: str) -> list[str]:
    (folder / "guards.py").write_text(GUARDS.format(banned=BANNED), encoding="utf-8")
    return ["guardrails", "start", "--config", str(folder / "guards.py"), "--port"]


def mmguard(policy: str) -> Write:
    def write(folder: Path, url: str) -> list[str]:
        (folder / "phrases.yaml").write_text(json.dumps(PHRASES), encoding="utf-8")
        words = [sys.executable, "-m", "mmguard", "serve", "--upstream", url]
        return [*words, "--policy", policy, "--port"]

    return write


OURS: Mapping[str, Product] = {
    "mmguard off": Product("", mmguard("off"), guards=False),
    "mmguard": Product("", mmguard("phrases.yaml")),
}
PEERS: Mapping[str, Product] = {
    "litellm": Product("litellm", litellm(), guards=False),
    "litellm filter": Product("litellm", litellm(FILTER)),
    "nemo": Product("nemo", nemo),
    "nemo iorails": Product("nemo", nemo, env={"NEMO_GUARDRAILS_IORAILS_ENGINE": "1"}),
    "guardrails-ai": Product(
        "guardrails",
        guardrails,
        path="/guards/banned/openai/v1/chat/completions",
        prefix=b"openai/",
    ),
}
PRODUCTS = {**OURS, **PEERS}
PACKAGES = sorted({product.package for product in PEERS.values()})


# -- installing and starting --------------------------------------------------------


def install(package: str, root: Path) -> None:
    """The locked versions into an environment of their own."""
    venv = root / package
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    subprocess.run([*pip, "--no-deps", "-r", str(LOCKS / f"{package}.txt")], check=True)


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


@contextmanager
def running(product: Product, root: Path, folder: Path, url: str) -> Iterator[Place]:
    """The product's server, from when it listens; its words go to `log` in the folder."""
    folder.mkdir()
    port = free_port()
    name, *words = product.write(folder, url)
    if product.package:
        name = str((root / product.package / "bin" / name).resolve())
    command = [name, *words, str(port)]
    env = {**os.environ, **ALONE, **product.env, "OPENAI_BASE_URL": url, "OPENAI_API_BASE": url}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=env) as process,
    ):
        try:
            wait(process, port, folder / "log")
            yield Place(port, process.pid, product.path, product.extra, product.prefix)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as place:
            place.settimeout(1)
            if place.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    told = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"the server did not start: {told}")
