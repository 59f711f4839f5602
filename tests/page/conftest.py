"""One browser and one server for all tests of the page."""

import pytest
from browser import CHROMIUM, Browser
from served import SEED, Server, finished


@pytest.fixture(scope="module")
def server():
    with Server() as served:
        yield served


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(browser, server):
    """The page with its first digit, and nothing requested or complained of before."""
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(f"{server.address}?seed={SEED}")
    finished(browser, "one")
    yield browser
    assert browser.complaints == []
    assert any(url.endswith(".wasm") for url in browser.requests)  # which the worker asks for
    assert [url for url in browser.requests if not url.startswith(server.address)] == []
