"""Pages to look at, and a real browser for them where this machine has one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from caq.report.analyse import analyse
from caq.report.render.page import render_page
from tests.report.render.hostile import hostile
from tests.report.render.samples import sample

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
Scheme = Literal["light", "dark"]
#: Opens a page's text and returns it with everything that it complained of or asked the network for.
Open = Callable[..., tuple[Page, list[str]]]


@pytest.fixture(scope="session")
def ordinary_page() -> str:
    comparison = sample()
    return render_page(analyse(comparison), comparison)


@pytest.fixture(scope="session")
def hostile_page() -> str:
    comparison = hostile()
    return render_page(analyse(comparison), comparison)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed; apt-get install chromium brings one")
    # A busy machine is no fault of the page.
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        # Without its sandbox, because that needs rights which root in a container does not have.
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    contexts = []

    def opened(text: str, width: int = 1400, scheme: Scheme = "light") -> tuple[Page, list[str]]:
        file = tmp_path / "report.html"
        file.write_bytes(text.encode("utf-8"))
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        complaints: list[str] = []
        page = context.new_page()

        def asked(request: Request) -> None:
            if request.url != file.as_uri():
                complaints.append(f"request: {request.url[:99]}")

        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", asked)
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.goto(file.as_uri())
        return page, complaints

    yield opened
    for context in contexts:
        context.close()
