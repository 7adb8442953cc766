"""The page of a report in a real browser: it renders, sorts and filters, and the slider changes figures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunegym import shipped_model

CHROMIUM = Path(os.environ.get("PRUNEGYM_CHROMIUM", "/usr/bin/chromium"))

if not os.environ.get("CI"):  # in CI a missing browser is a failure
    pytest.importorskip("plotly", reason="plotly is not installed")
    pytest.importorskip("playwright", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}; set PRUNEGYM_CHROMIUM to a Chromium", allow_module_level=True)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, written):
    """The page, offline; what it writes to the console fails the test."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(written["page"].resolve().as_uri())
    page.wait_for_selector("#macs-chart .main-svg", timeout=60_000)
    yield page
    assert said == []
    context.close()


def column(page, number):
    return page.locator(f"#table tbody tr td:nth-child({number})").all_inner_texts()


def first_number(text):
    return float(text.split()[0])


def test_every_part_is_drawn(page):
    for chart in ("macs", "time", "profile", "learning"):
        assert page.locator(f"#{chart}-chart .scatterlayer .trace").count() >= 2
    assert page.locator("#table tbody tr").count() == 6
    assert page.locator("#statistics-table tr").count() == 4
    assert page.locator(".image").count() == 24
    assert page.locator("#images canvas").count() == 24 * len(shipped_model("digits").masked.gates)
    assert page.locator("#about").inner_text() == "1 task, 3 agents, 10 runs."


def test_the_table_sorts_and_filters(page):
    rewards = [first_number(text) for text in column(page, 3)]
    assert rewards == sorted(rewards, reverse=True)
    page.get_by_role("button", name="accuracy").click()
    accuracies = [first_number(text) for text in column(page, 5)]
    assert accuracies == sorted(accuracies, reverse=True)
    page.keyboard.press("Enter")  # the heading keeps the focus
    assert [first_number(text) for text in column(page, 5)] == sorted(accuracies)
    assert page.locator("th[aria-sort=ascending]").count() == 1
    page.locator("#filter").fill("ppo lambda-0.5")
    assert column(page, 1) == ["PPO"]
    assert column(page, 2) == ["lambda-0.5"]
    assert page.locator("#count").inner_text() == "1 of 6 rows."


def test_the_slider_changes_the_rewards(page, made):
    page.locator("#filter").fill("ppo lambda-0.2")
    page.locator("#lambda").fill("0.4")
    table = next(table for where, table in made[1].tables.items() if where.point == "lambda-0.2")
    figures = table.rows[0].figures
    expected = figures["accuracy"].mean - 0.4 * figures["total_mac_share"].mean
    assert first_number(column(page, 3)[0]) == pytest.approx(expected, abs=6e-5)
    before = column(page, 3)
    page.locator("#lambda").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#lambda-value").inner_text() == "0.41"
    assert column(page, 3) != before


def test_light_and_dark(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(colour)
    page.locator("#theme").click()
    light = page.evaluate(colour)
    assert (dark, light) == ("rgb(15, 19, 23)", "rgb(255, 255, 255)")


def test_images_are_reached_by_keyboard(page):
    page.locator(".image").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").count("of the MACs") == 1
    assert page.evaluate("[...document.querySelectorAll('.image')].indexOf(document.activeElement)") == 1


def test_a_phone_shows_all_without_scrolling_sideways(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
