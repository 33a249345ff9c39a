"""The operator's page in a browser: a real sidecar on loopback, a scripted upstream behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.loopback import served
from tests.panels import (
    CONTRAST,
    DRAFT,
    HOSTILE,
    INLINE,
    KEY,
    NAMELESS,
    ask,
    await_kept,
    choice,
    fill,
    find_chromium,
    open_decision,
    rows,
    sidecar,
    watched,
)
from tests.world import BAD, png

pytest.importorskip("playwright", reason="no playwright: pip install playwright")
from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Open = Callable[..., "Page"]
ROOMS = ("decisions", "playground", "policies", "load")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = find_chromium(playwright.chromium.executable_path)
        if path is None:
            pytest.skip("no Chromium: apt install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ui")
    audit = {"path": folder / "a.db", "texts": True, "pictures": True}
    with served(sidecar(folder, audit=audit)) as url:
        yield fill(url.removesuffix("/v1"))


@pytest.fixture(scope="module")
def known(browser: Browser) -> Page:
    """A page of an operator whose key is known. A second one would take its time."""
    page = browser.new_page()
    page.set_default_timeout(5000)
    known = f"sessionStorage.setItem('mmguard.operator', '{KEY}')"
    page.add_init_script(f"if (location.protocol === 'http:') {known}")
    return page


@pytest.fixture
def unknown(browser: Browser, site: str) -> Iterator[Page]:
    """The page as somebody sees it who has not signed in."""
    page = browser.new_page()
    page.set_default_timeout(5000)
    page.goto(f"{site}/ui")
    yield page
    page.close()


@pytest.fixture
def opened(known: Page, site: str) -> Iterator[Open]:
    """Opens the page anew; any trouble on it fails the test."""

    def open_page(place: str = "", url: str = site, wide: int = 1200, **media: Any) -> Page:
        known.goto("about:blank")
        known.set_viewport_size({"width": wide, "height": 800})
        known.emulate_media(reduced_motion="reduce", **media)
        known.goto(f"{url}/ui#/{place}")
        return known

    with watched(known):
        yield open_page
    known.unroute_all()


def test_signing_in_and_out(unknown: Page) -> None:
    page, asked = unknown, list[str]()
    page.on("request", lambda request: asked.append(f"{request.url} {request.post_data}"))
    field = page.get_by_label("Operator's key")
    expect(field).to_be_focused()
    field.fill("not-the-operators-key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").first).to_have_text("This is not the operator's key.")
    assert page.evaluate("sessionStorage.length") == 0
    expect(page.locator("#app")).to_be_hidden()
    field.fill(KEY)
    page.get_by_role("button", name="Open").click()
    expect(rows(page)).not_to_have_count(0)
    assert not [line for line in asked if KEY in line]
    page.reload()
    expect(rows(page)).not_to_have_count(0)
    page.get_by_role("button", name="Sign out").click()
    expect(field).to_be_visible()
    expect(rows(page)).to_have_count(0)
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0


def test_a_key_that_is_not_known_any_more(unknown: Page) -> None:
    unknown.evaluate("sessionStorage.setItem('mmguard.operator', 'another-operators-key')")
    unknown.reload()
    expect(unknown.get_by_label("Operator's key")).to_be_visible()
    expect(unknown.locator("#app")).to_be_hidden()


def test_no_script_but_its_own(unknown: Page) -> None:
    blocked = unknown.evaluate(INLINE)
    assert blocked in ("require-trusted-types-for", "script-src-elem", "TypeError")
    assert unknown.evaluate("window.hacked") is None


# -- decisions ------------------------------------------------------------------------------


def test_filters(opened: Open) -> None:
    page = opened()
    expect(rows(page)).not_to_have_count(0)
    everything = rows(page).count()
    choice(page, "Decision").select_option("Mended")
    expect(rows(page)).to_have_count(2)
    choice(page, "Step").select_option("rewrite")
    page.get_by_label("Search").fill("PLEASE MEND")
    expect(rows(page)).to_have_count(1)
    page.get_by_label("Search").fill("nobody ever said this")
    expect(page.locator("#nothing")).to_have_text("Nothing matches these filters.")
    expect(page.get_by_role("status").first).to_have_text("Nothing matches these filters.")
    page.get_by_role("button", name="Clear").click()
    expect(rows(page)).to_have_count(everything)
    choice(page, "Key").select_option("team")
    expect(rows(page)).to_have_count(everything - 1)
    choice(page, "Time").select_option("From … to …")
    page.get_by_label("From", exact=True).fill("2001-01-01T00:00")
    page.get_by_label("To", exact=True).fill("2001-01-02T00:00")
    expect(rows(page)).to_have_count(0)


def test_live_and_paused(opened: Open, site: str) -> None:
    page = opened()
    expect(rows(page)).not_to_have_count(0)
    ask(site, "say fine, live")
    expect(rows(page).first).to_contain_text("say fine, live")
    live = page.locator("#live")
    live.click()
    expect(live).to_have_attribute("aria-pressed", "false")
    ask(site, "say fine, paused")
    page.wait_for_timeout(2300)
    expect(rows(page).first).to_contain_text("say fine, live")
    ask(site, "say fine, once more")
    live.click()
    expect(rows(page).nth(1)).to_contain_text("say fine, paused")
    places = rows(page).get_by_role("link").evaluate_all("(links) => links.map((a) => a.hash)")
    assert len(places) == len({*places})


def test_pages(opened: Open, known: Page, site: str) -> None:
    known.route(
        "**/api/decisions",
        lambda route: route.continue_(
            post_data=json.dumps({**json.loads(route.request.post_data or ""), "limit": 2})
        ),
    )
    page = opened()
    expect(rows(page)).to_have_count(2)
    page.get_by_role("button", name="Show older").click()
    expect(rows(page)).to_have_count(4)
    expect(rows(page).nth(2).get_by_role("link")).to_be_focused()
    page.locator("#live").click()
    for i in range(3):
        ask(site, f"say fine, with no gap {i}")
    await_kept(site, "no gap 2")
    page.locator("#live").click()
    # More than a page has come: the list begins anew.
    expect(rows(page)).to_have_count(2)
    expect(rows(page).nth(1)).to_contain_text("no gap 1")


def test_one_decision(opened: Open) -> None:
    page = opened()
    sheet = open_decision(page, "please mend this")
    expect(sheet.get_by_role("heading").first).to_contain_text("mended")
    expect(sheet).to_contain_text("The draft was flagged: harm gave 0.90 where the limit is 0.50")
    stages = sheet.locator(".trail .stage b").all_text_contents()
    assert stages == [
        "Model answers",
        "Draft is checked",
        "A safe answer is planned",
        "Answer is rewritten",
        "Rewritten answer is checked",
    ]
    gone = sheet.locator("del").all_text_contents()
    come = sheet.locator("ins").all_text_contents()
    assert (gone, come) == (
        [f"{BAD} is what nobody should read"],
        ["Some yeast helps it rise well"],
    )
    sheet.get_by_label("Draft", exact=True).check(force=True)
    expect(sheet.locator(".texts")).to_have_text(DRAFT)
    table = sheet.get_by_role("table")
    expect(table.get_by_role("row", name="Model answers")).to_contain_text("75")
    expect(table.get_by_role("row", name="Whole request")).to_contain_text("2115")
    sheet.get_by_text("SHA-256").click()
    assert all(len(text) == 64 for text in sheet.locator(".hashes code").all_text_contents())
    sheet.get_by_role("button", name="Score the draft by sentence").click()
    expect(sheet.locator(".sentences li")).to_have_count(3)
    expect(sheet.locator(".sentences li.repair")).to_contain_text(BAD)


def test_a_harmful_picture_is_veiled(opened: Open) -> None:
    page = opened()
    sheet = open_decision(page, "please mend this")
    picture = sheet.get_by_alt_text("Picture 1 of the request")
    blur = "(image) => getComputedStyle(image).filter"
    assert "blur" in picture.evaluate(blur)
    assert picture.evaluate("(image) => image.naturalWidth") == 256
    sheet.get_by_role("button", name="Show picture").click()
    assert picture.evaluate(blur) == "none"


def test_by_keyboard(opened: Open) -> None:
    page = opened()
    expect(rows(page)).not_to_have_count(0)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    order = list[str]()
    for _ in range(30):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.closest('[id], [name]')?.id || 'none'"))
        if page.evaluate("!!document.activeElement.closest('#rows')"):
            break
    assert order.index("leave") < order.index("live") < len(order) - 1
    first, second = (rows(page).nth(i).get_by_role("link") for i in range(2))
    expect(first).to_be_focused()
    assert "solid" in first.evaluate("(link) => getComputedStyle(link).outline")
    page.keyboard.press("ArrowDown")
    expect(second).to_be_focused()
    page.keyboard.press("Enter")
    sheet = page.get_by_role("dialog")
    expect(sheet.get_by_role("heading", name="Why")).to_be_visible()
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    expect(second).to_be_focused()
    assert page.url.endswith("#/decisions")


def test_what_data_says_is_text(opened: Open) -> None:
    """In every place that shows anybody's words, names or numbers."""
    page = opened()
    sheet = open_decision(page, "hostile")
    expect(sheet.locator(".talk")).to_contain_text(HOSTILE)
    expect(sheet.locator(".facts")).to_contain_text(HOSTILE)
    expect(sheet.locator(".texts")).to_contain_text(HOSTILE)
    sheet.get_by_role("button", name="Score the draft").click()
    expect(sheet.locator(".sentences li").first).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_label("Search").fill(HOSTILE)
    expect(rows(page)).to_have_count(1)
    page.get_by_role("link", name="Playground").click()
    page.get_by_label("Question").fill(f"hostile {HOSTILE}")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#tried")).to_contain_text(HOSTILE)
    page.get_by_role("link", name="Policies").click()
    expect(page.locator("#policy")).to_contain_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img[src='x'], dialog img[src='x'], body script").count() == 0


# -- the other rooms --------------------------------------------------------------------------


def test_the_playground(opened: Open) -> None:
    page = opened("playground")
    page.get_by_label("Question").fill("please mend this")
    page.get_by_label("Picture").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": png(40, 30)}
    )
    expect(page.get_by_alt_text("The chosen picture")).to_be_visible()
    page.get_by_role("button", name="Ask").click()
    tried = page.locator("#tried")
    expect(tried.get_by_role("heading").first).to_contain_text("mended")
    expect(tried.locator("del")).to_contain_text(BAD)
    expect(tried.locator("ins")).to_contain_text("yeast")
    expect(tried.locator(".trail li")).to_have_count(5)
    choice(page, "Policy").select_option("off")
    page.get_by_role("button", name="Ask").click()
    expect(tried).to_contain_text("Nothing was checked.")
    expect(tried).to_contain_text(DRAFT)


def test_a_question_that_fails(opened: Open) -> None:
    page = opened("playground")
    page.get_by_label("Question").fill("x")
    page.route("**/api/try", lambda route: route.fulfill(status=200, body="no JSON"))
    button = page.get_by_role("button", name="Ask")
    button.click()
    expect(page.locator("#tried")).to_contain_text("No answer: ")
    expect(button).to_be_enabled()


def test_policies(opened: Open) -> None:
    page = opened("policies")
    expect(page.locator("#policy pre")).to_contain_text("detector: harm")
    expect(page.locator("#policy pre")).to_contain_text("strictness: 0.5")
    page.get_by_role("button", name="strict preset").click()
    expect(page.locator("#policy h2")).to_contain_text("strict@")


def test_load(opened: Open) -> None:
    page = opened("load")
    expect(page.get_by_role("heading", name="Requests over time")).to_be_visible()
    chart = page.get_by_role("img").first
    assert "in all" in (chart.get_attribute("aria-label") or "")
    page.get_by_text("As a table").first.click()
    expect(page.get_by_role("columnheader", name="mended")).to_be_visible()
    page.get_by_label("1 day").check(force=True)
    expect(page.get_by_role("heading", name="Decisions over time")).to_be_visible()
    expect(page.get_by_text("evenly spread")).to_be_visible()


def test_without_an_audit(opened: Open, tmp_path: Path) -> None:
    with served(sidecar(tmp_path)) as url:
        page = opened(url=url.removesuffix("/v1"))
        expect(page.get_by_role("heading", name="Decisions are not kept here")).to_be_visible()
        expect(page.locator("#no-audit pre")).to_contain_text("path: audit.db")
        page.get_by_role("link", name="Load").click()
        expect(page.get_by_text("In flight now")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(opened: Open, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) < 200
    assert dark == (scheme == "dark")
    expect(rows(page)).not_to_have_count(0)
    assert page.evaluate(CONTRAST) == []
    open_decision(page, "please mend this")
    assert page.evaluate(CONTRAST) == []
    page.keyboard.press("Escape")
    for room in ROOMS[1:]:
        page.goto(f"{page.url.partition('#')[0]}#/{room}")
        page.wait_for_timeout(200)
        assert page.evaluate(CONTRAST) == []


def test_on_a_phone(opened: Open) -> None:
    page = opened(wide=320)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    expect(rows(page)).not_to_have_count(0)
    for wide in (560, 800, 1100, 1140, 320):
        page.set_viewport_size({"width": wide, "height": 800})
        assert page.evaluate(fits), wide
    assert page.evaluate(fits)
    page.get_by_role("button", name="Filters").click()
    expect(choice(page, "Step")).to_be_visible()
    assert page.evaluate(fits)
    sheet = open_decision(page, "hostile")
    inner = "(node) => node.scrollWidth <= node.clientWidth"
    assert sheet.locator("#sheet-body").evaluate(inner)
    sheet.get_by_role("button", name="Close").click()
    for room in ROOMS[1:]:
        page.get_by_role("link", name=room.capitalize()).click()
        expect(page.locator(f"#{room}")).to_be_visible()
        if room == "playground":
            page.get_by_label("Question").fill(f"hostile {HOSTILE}")
            page.get_by_role("button", name="Ask").click()
            expect(page.locator(".result")).to_be_visible()
        page.wait_for_timeout(200)
        assert page.evaluate(fits), room


def test_all_that_can_be_used_has_a_name(opened: Open) -> None:
    page = opened()
    expect(rows(page)).not_to_have_count(0)
    assert page.evaluate(NAMELESS) == []
    expect(page.get_by_role("table").get_by_role("columnheader")).to_have_count(8)
    narrow = opened(wide=320)
    expect(rows(narrow).first.get_by_role("cell")).to_have_count(8)
