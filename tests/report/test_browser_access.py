"""The page for everyone: keyboard, contrast, screen reader, phone, print, no scripts."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.report.conftest import ENTER, TAB

AUDIT = (Path(__file__).parent / "audit.js").read_text(encoding="utf-8")
PHONE = (360, 740)


def unreadable(browser):
    """Return how many texts the page shows, and those with less contrast than WCAG AA asks for."""
    texts = browser.js(AUDIT + "return textContrasts();")
    return len(texts), [found for found in texts if found["ratio"] < found["needed"]]


def accessible(browser):
    """Return role and name of everything that the page tells a screen reader."""
    nodes = browser.run("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node.get("ignored") and "role" in node]
    return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in shown]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), PHONE], ids=["desktop", "phone"])
def test_all_text_and_controls_have_wcag_aa_contrast(browser, page, index_page, size, dark):
    browser.show(*size, dark=dark)
    for path in (page, index_page):
        browser.open(path)
        browser.js("for (const part of document.querySelectorAll('details')) part.open = true")
        num_texts, weak = unreadable(browser)
        assert num_texts > 50
        controls = browser.js(AUDIT + "return controlContrasts();")
        assert [*weak, *(found for found in controls if found["ratio"] < found["needed"])] == []
    browser.open(page)
    browser.js("document.querySelector('.strip').click()")
    assert unreadable(browser)[1] == []


def test_the_contrast_test_can_fail(browser, page):
    browser.open(page)
    browser.js("document.documentElement.style.setProperty('--muted', '#9aa5b0')")
    assert unreadable(browser)[1]


def test_everything_that_can_be_operated_has_a_name(browser, page):
    browser.open(page)
    needed = {"button", "link", "checkbox", "combobox", "searchbox", "slider", "spinbutton", "table"}
    found = browser.settled(lambda: accessible(browser), lambda nodes: needed <= {role for role, _ in nodes})
    assert needed <= {role for role, _ in found}
    operated = (needed | {"textbox", "image"}) - {"table"}
    assert [role for role, name in found if role in operated and not name.strip()] == []


def test_tables_stay_tables_on_a_phone(browser, page):
    browser.show(*PHONE)
    browser.open(page)

    def counts():
        roles = [role for role, _ in accessible(browser)]
        return roles.count("table"), roles.count("row") > 50, roles.count("cell") + roles.count("gridcell") > 300

    whole = (4, True, True)
    assert browser.settled(counts, lambda found: found == whole) == whole


def test_the_whole_page_can_be_walked_with_the_tab_key(browser, page):
    browser.open(page)
    browser.press(TAB)
    assert browser.js("return document.activeElement.className") == "skip"
    assert browser.js("return document.activeElement.getBoundingClientRect().left") >= 0
    browser.press(ENTER)
    assert browser.js("return document.activeElement.id") == "main"
    seen = []
    for _ in range(60):
        browser.press(TAB)
        ring, label = browser.js(
            "const e = document.activeElement; const s = getComputedStyle(e);"
            "return [s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2, e.id || e.textContent.trim()];"
        )
        assert ring, f"no focus ring on {label}"
        seen.append(label)
    assert {"show-heatmap", "opacity", "gallery-group", "True alarm"} <= set(seen)


def test_headings_do_not_skip_a_level(browser, page, index_page):
    for path in (page, index_page):
        browser.open(path)
        levels = browser.js(
            "return [...document.querySelectorAll('h1,h2,h3,h4')].filter((e) => e.checkVisibility())"
            ".map((e) => Number(e.tagName[1]))"
        )
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("width_px", [320, 360, 768, 1920])
def test_no_page_scrolls_sideways(browser, page, index_page, width_px):
    browser.show(width_px, 800)
    for path in (page, index_page):
        browser.open(path)
        assert browser.js("return document.documentElement.scrollWidth") <= width_px


def test_what_to_touch_is_large_enough_on_a_phone(browser, page):
    browser.show(*PHONE)
    browser.open(page)
    small = browser.js(
        "return [...document.querySelectorAll('button, select')]"
        ".filter((e) => e.checkVisibility())"
        ".filter((e) => e.getBoundingClientRect().height < 36).map((e) => e.id || e.textContent)"
    )
    assert small == []


def test_the_first_screen_answers_on_desktop_and_phone(browser, page):
    for size in ((1280, 900), PHONE):
        browser.show(*size)
        browser.open(page)
        bottoms = browser.js(
            "return ['.headline h2', '.headline a', '.checks li.look'].map("
            "(s) => document.querySelector(s).getBoundingClientRect().bottom)"
        )
        assert max(bottoms) < size[1], bottoms


def test_dark_and_light_differ_and_charts_follow(browser, page):
    found = {}
    for dark in (False, True):
        browser.show(dark=dark)
        browser.open(page)
        found[dark] = browser.js(
            "return [getComputedStyle(document.body.parentElement).backgroundColor,"
            "getComputedStyle(document.querySelector('.chart text')).fill]"
        )
    assert all(light != dark for light, dark in zip(found[False], found[True], strict=True))


def test_the_print_has_no_controls_and_the_twelve_worst_strips(browser, page):
    browser.open(page)
    browser.show(medium="print")
    shown = browser.js(
        "const seen = (s) => [...document.querySelectorAll(s)].filter((e) => e.checkVisibility()).length;"
        "return [seen('button:not(.strip), select, input, nav'), seen('.card'), seen('.print-note'),"
        "seen('.chart') > 3]"
    )
    sortable = 8  # the table's headings stay, without their arrows
    assert shown == [sortable, 12, 1, True]
    pdf = browser.pdf()
    pages = len(re.findall(rb"/Type /Page\b", pdf))
    assert pdf.startswith(b"%PDF")
    assert 3 <= pages <= 12


def test_without_scripts_the_findings_and_strips_are_there(browser, page):
    browser.run("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    document = browser.run("DOM.getDocument", depth=0)["root"]["nodeId"]

    def seen(selector):
        nodes = browser.run("DOM.querySelectorAll", nodeId=document, selector=selector)["nodeIds"]
        return sum(bool(_box(browser, node)) for node in nodes)

    assert seen(".card") == 30
    assert seen(".checks li") >= 4
    assert seen("noscript p") == 1
    assert seen("#filters, .pager, .verdicts, #row-table") == 0


def _box(browser, node):
    from selenium.common.exceptions import WebDriverException

    try:
        return browser.run("DOM.getBoxModel", nodeId=node)["model"]["width"]
    except WebDriverException:  # it has no box
        return 0
