"""A sidecar with an operator's page, a scripted upstream behind it, and looks at the page."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.upstream import app, completion, write_policy
from tests.world import BAD, png

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

KEY = "an-operators-own-key"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>{{7*7}}'
DRAFT = f"Bread needs flour and water. {BAD} is what nobody should read. Bake it for half an hour."
MENDED = "Bread needs flour and water. Some yeast helps it rise well. Bake it for half an hour."


def upstream(request: httpx.Request) -> httpx.Response:
    """Says what it is asked to; of what it is asked to mend, the mended text."""
    if request.method == "GET":
        return httpx.Response(200, json={"data": [{"id": "up"}, {"id": HOSTILE}]})
    told = json.dumps(json.loads(request.content)["messages"])
    if "anew" in told:
        said = "mended" if "hostile" in told else MENDED
    elif "hostile" in told:
        said = f"{BAD} {HOSTILE}"
    else:
        said = DRAFT if "mend" in told else "fine"
    return httpx.Response(200, json=completion({"content": said}))


def sidecar(folder: Path, **settings: Any) -> Any:
    keys = {"team": {"key": "a-key-of-the-team"}, f"k{HOSTILE}": {"key": "a-hostile-name"}}
    policy = write_policy(folder, repair=["rewrite"], description=HOSTILE)
    return app(upstream, policy, operator_key=KEY, keys=keys, **settings)


def fill(url: str) -> str:
    """Decisions of every kind, a hostile one last; gives the address back."""
    for i in range(3):
        ask(url, f"say fine {i}")
    ask(url, "please mend this", picture=True)
    ask(url, f"hostile {HOSTILE}", key="a-hostile-name")
    return url


def ask(url: str, text: str, *, picture: bool = False, key: str = "a-key-of-the-team") -> None:
    parts: list[Any] = [{"type": "text", "text": text}]
    if picture:
        uri = f"data:image/png;base64,{base64.b64encode(png(300, 200)).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": uri}})
    body = {"model": "up", "messages": [{"role": "user", "content": parts}]}
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200


def await_kept(url: str, text: str) -> None:
    """The audit writes a moment later."""
    headers, end = {"authorization": f"Bearer {KEY}"}, time.monotonic() + 10
    while True:
        found = httpx.post(f"{url}/ui/api/decisions", json={"text": text}, headers=headers)
        if found.json()["rows"]:
            return
        assert time.monotonic() < end
        time.sleep(0.02)


def find_chromium(own: str) -> str | None:
    """A Chromium of this machine, or else playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", own)
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def watched(page: Page) -> Iterator[None]:
    """Any trouble on the page fails the test."""
    troubles = list[str]()

    def failed(error: Any) -> None:
        troubles.append(str(error))

    def said(message: Any) -> None:
        if message.type == "error":
            troubles.append(message.text)

    page.on("pageerror", failed)
    page.on("console", said)
    yield
    page.remove_listener("pageerror", failed)
    page.remove_listener("console", said)
    assert troubles == []


def rows(page: Page) -> Locator:
    return page.locator("#rows tr")


def choice(page: Page, name: str) -> Locator:
    return page.get_by_role("combobox", name=name, exact=True)


def open_decision(page: Page, words: str) -> Locator:
    from playwright.sync_api import expect

    rows(page).filter(has_text=words).get_by_role("link").click()
    sheet = page.get_by_role("dialog")
    expect(sheet.get_by_role("heading", name="Times and tokens")).to_be_visible()
    return sheet


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) =>
    v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = rgba(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return rgba("white");
  };
  const bad = [], sheet = document.querySelector("dialog[open]");
  for (const node of (sheet || document.body).querySelectorAll("*")) {
    const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim());
    if (!own || !node.checkVisibility() || node.closest("svg, option, :disabled")) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${node.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return bad;
}"""
NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, dialog, nav")]
  .filter((node) => !(node.labels?.length || node.textContent.trim() && node.tagName === "BUTTON"
    || node.getAttribute("aria-label") || node.getAttribute("aria-labelledby")))
  .map((node) => node.outerHTML.slice(0, 80))"""
# By which rule a script that is put into the page is blocked.
INLINE = """() => new Promise((done) => {
document.addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective));
const script = document.createElement("script");
try { script.textContent = "window.hacked = 1"; document.body.append(script); }
catch (error) { done(error.name); }
})"""
