"""The page in a real browser; left out, by name, where there is none."""

import shutil
import time

import pytest
from dashboard_runs import append, row, run, started

from fedloom.dashboard.watching import watch

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark", "locale": "es-ES"}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as found:
        made = found.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture
def shown(browser):
    """Open pages; whatever a page complains of, or asks of another address, fails the test."""
    opened, wrong = [], []
    expected = ("INCOMPLETE_CHUNKED", "401")  # the end of the server, and the page without a token

    def show(url, **context):
        made = browser.new_context(**({"locale": "en-US", "viewport": {"width": 1280, "height": 900}} | context))
        opened.append(made)
        page = made.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda said: any(text in said.text for text in expected) or wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda sent: sent.url.startswith((url.partition("?")[0], "data:")) or wrong.append(sent.url))
        page.goto(url)
        return page

    yield show
    for one in opened:
        one.close()
    assert not wrong


@pytest.fixture
def runs(tmp_path):
    now = time.time()
    member = {"samples": 90, "agreed": True, "left": "", "took": 2.0, "seen": now}
    people = [member | {"number": 0, "name": "ana <b>&"}, member | {"number": 1, "name": "luis", "left": "had to go"}]
    presence = {"time": now + 3600, "count": 3, "round": 3, "waiting": [0], "away": 1e9, "clients": people}
    run(tmp_path / "live", [started(2), row(1, 0.5), row(2, 0.75, ["client_0"], epsilon=0.5)], presence=presence)
    run(tmp_path / "past", [started(), *(row(n, n / 10) for n in range(1, 9)), {"event": "end"}], name="fedprox")
    return tmp_path


def curve(page, chart):
    return page.locator(f"[data-key={chart}] path.curve").first.get_attribute("d")


def test_a_run_is_shown_live_with_its_clients_and_curves(shown, runs):
    with watch(runs) as made:
        page = shown(made.url)
        page.get_by_role("heading", name="fedavg · digits").wait_for()
        assert page.get_by_role("checkbox", name="live").is_checked()  # what goes on is shown first
        clients = page.get_by_role("region", name="Clients")
        assert clients.get_by_role("row", name="ana <b>&").inner_text().split("\t")[1] == "training"
        assert "client_0 broke at line 7" in clients.inner_text()
        assert "45 samples/s" in clients.inner_text()
        assert page.locator("dd.big").all_inner_texts()[0] == "75.0%"
        before = curve(page, "accuracy")
        append(runs / "live", row(3, 0.875))
        page.get_by_text("87.5%").first.wait_for()
        assert curve(page, "accuracy") != before
        for chart in ("accuracy", "loss", "bytes", "epsilon", "seconds"):
            assert page.locator(f"[data-key={chart}] svg[role=img]").count() == 1


def test_curves_can_be_read_with_the_keyboard_and_as_a_table(shown, runs):
    with watch(runs / "past") as made:
        page = shown(made.url)
        page.locator("[data-key=accuracy] svg").focus()
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        tip = page.locator("[data-key=accuracy] .tip")
        assert tip.inner_text().split("\n")[0] == "Round 7"
        assert "70.0%" in tip.inner_text()
        page.locator("[data-key=accuracy] summary").press("Enter")
        table = page.get_by_role("region", name="Accuracy").get_by_role("row")
        table.nth(1).wait_for()
        assert table.all_inner_texts()[1].split() == ["8", "80.0%"]
        page.get_by_role("radio", name="Bytes sent").focus()
        page.keyboard.press("Space")
        page.locator("[data-key=accuracy] .axis", has_text="kB").first.wait_for()


def test_runs_are_laid_over_each_other_and_the_choice_stays_in_the_address(shown, runs):
    with watch(runs, token="a-token-of-the-tests") as made:
        page = shown(made.url)
        page.get_by_role("heading", name="fedavg · digits").wait_for()
        assert "token" not in page.url
        page.get_by_role("checkbox", name="past").check()
        page.get_by_role("heading", name="Side by side").wait_for()
        page.locator("[data-key=accuracy] path.curve").nth(1).wait_for()
        page.wait_for_function("document.querySelectorAll('[data-key=accuracy] path.curve').length === 2")
        differs = page.get_by_role("region", name="What differs").inner_text()
        assert "algorithm.name" in differs
        assert "data.source" not in differs
        assert page.url.endswith("/#run=live&run=past")  # and no token in it
        page.reload()  # the cookie lets it in
        page.get_by_role("heading", name="Side by side").wait_for()
        page.get_by_role("checkbox", name="live").uncheck()
        page.get_by_role("heading", name="fedprox · digits").wait_for()


def test_a_phone_shows_all_in_its_width_in_the_dark_and_in_spanish(shown, runs):
    with watch(runs) as made:
        page = shown(made.url, **PHONE)
        page.get_by_role("heading", name="Exactitud").wait_for()
        assert page.locator("html").get_attribute("lang") == "es"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(18, 23, 29)"
        page.locator("#chooser summary").click()
        page.get_by_role("checkbox", name="past").check()
        page.get_by_role("heading", name="Comparación").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_page_that_needs_a_token_asks_for_it(shown, runs):
    with watch(runs, token="a-token-of-the-tests") as made:
        page = shown(made.url.partition("?")[0] + "?")
        page.get_by_label("Token").fill("a-token-of-the-tests")
        page.get_by_role("button").click()
        page.get_by_role("heading", name="fedavg · digits").wait_for()
