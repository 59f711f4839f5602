"""The page for every reader: keyboard, names, motion, widths; its policy, and what is refused."""

import pytest
from served import PAGE, Quiet, Server

pytestmark = pytest.mark.slow


def test_whatever_can_be_used_has_a_name_and_can_be_reached(page):
    nodes = page.command("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "slider", "combobox", "link", "image", "img", "region"}
    found = [n for n in nodes if not n["ignored"] and n["role"]["value"] in named]
    roles = [n["role"]["value"] for n in found]
    assert (roles.count("region"), roles.count("slider"), roles.count("combobox")) == (5, 2, 1)
    assert [n for n in found if not n["name"]["value"].strip()] == []
    reached = []
    for _ in range(20):
        page.press("Tab")
        reached.append(page.js("document.activeElement.id"))
    assert [i for i in reached if i][:3] == ["one-new", "one-seed", "level-t"]
    assert {"ways-new", "between-new", "repair-t", "repair-strokes"} <= set(reached)


def test_its_policy_keeps_it_in_its_folder(page):
    refused = (
        "new Promise((resolve) => {"
        "addEventListener('securitypolicyviolation', (e) => resolve(e.effectiveDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => setTimeout(resolve, 1000)) })"
    )
    assert page.js(refused) == "connect-src"
    page.complaints.clear()  # of this attempt
    page.requests[:] = [url for url in page.requests if not url.endswith(":9/")]


def test_who_asks_for_less_motion_sees_no_film(page):
    film = (
        "import('./picture.mjs').then(async ({ film, blank }) => {"
        "const start = performance.now();"
        "await film(document.createElement('canvas'), blank(), blank(), () => true);"
        "return performance.now() - start })"
    )
    assert page.js(film) > 500
    reduce = {"name": "prefers-reduced-motion", "value": "reduce"}
    page.command("Emulation.setEmulatedMedia", features=[reduce])
    assert page.js(film) < 100
    page.command("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(page, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 700}
    page.command("Emulation.setDeviceMetricsOverride", **size)
    assert page.js("document.documentElement.scrollWidth") <= width
    bottom = "document.getElementById('one-new').getBoundingClientRect().bottom"
    assert page.js(f"Math.max({bottom}, 0)") < 700  # digit and button: no scrolling
    page.command("Emulation.clearDeviceMetricsOverride")


# ---------------------------------------------------------------- refusals


def message(browser):
    return browser.until(
        "[...document.querySelectorAll('.message')].find((m) => !m.hidden)?.innerText"
    )


def test_opened_as_a_file_it_names_the_command(browser):
    browser.open((PAGE / "index.html").as_uri())
    assert "python -m http.server -d docs/page" in message(browser)


def test_a_missing_network_is_named(browser):
    class Missing(Quiet):
        missing = "mnist_dmd.onnx"

    with Server(Missing) as server:
        browser.open(server.address)
        assert "mnist_dmd.onnx could not be loaded" in message(browser)
        assert browser.js("document.getElementById('one-time').textContent") == "no digit"


def test_no_webassembly_is_named(browser, server):
    before = browser.command(
        "Page.addScriptToEvaluateOnNewDocument", source="delete globalThis.WebAssembly"
    )
    browser.open(server.address)
    assert "refuses WebAssembly" in message(browser)
    browser.command("Page.removeScriptToEvaluateOnNewDocument", **before)
