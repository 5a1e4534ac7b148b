import re
from dataclasses import replace
from html.parser import HTMLParser

import pyarrow as pa
import pytest

from steelray.report import drift
from steelray.report.data import GalleryItem, IndexEntry, safe_url
from steelray.report.page import render_index, render_report
from steelray.schema import SCORES
from tests.report.night import GROUPS, HOSTILE_KEY, make_night

VOID = {"meta", "link", "img", "input", "br"}


class Outline(HTMLParser):
    """Elements with their attributes, in order; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def data():
    return make_night(700, 5, darker="camera2")


@pytest.fixture(scope="module")
def outline(data):
    return Outline(render_report(data))


def test_the_page_holds_no_markup_but_its_own(data, outline):
    assert data.gallery[0].image_key == HOSTILE_KEY
    assert len(outline.all("script")) == 3  # the table's JSON and two of its own
    assert all(set(attributes) <= {"type", "id"} for attributes in outline.all("script"))
    assert not [name for _, attributes in outline.elements for name in attributes if name.startswith("on")]
    assert HOSTILE_KEY in outline.text
    assert HOSTILE_KEY not in render_report(data)


def test_a_hostile_group_status_error_and_detail_stay_text():
    groups = ("<img src=x onerror=alert(1)>", "camera2")
    data = make_night(300, 2, groups=groups, details={"<script>a</script>": "<script>b</script>"})
    text = render_report(
        replace(data, archive_uri="s3://a/</title><script>c</script>", run_id="</script><script>d</script>")
    )
    outline = Outline(text)
    assert len(outline.all("script")) == 3
    assert all(attributes["src"].startswith("data:") for attributes in outline.all("img"))
    assert not [name for _, attributes in outline.elements for name in attributes if name.startswith("on")]
    assert groups[0] in " ".join(outline.text)


def test_nothing_is_fetched(outline):
    for tag, attributes in outline.elements:
        for name in ("src", "srcset", "poster", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert [link["href"] for link in outline.all("link")] == ["data:,"]
    policy = next(meta["content"] for meta in outline.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'; img-src data:" in policy
    assert policy.count("'sha256-") == 2


def test_links_lead_to_originals_and_nowhere_dangerous(data, outline):
    links = [attributes["href"] for attributes in outline.all("a") if "href" in attributes]
    outside = [href for href in links if not href.startswith("#")]
    assert outside == [item.object_url for item in data.gallery if item.object_url.startswith("https:")]
    assert len(outside) == 3
    ids = {attributes["id"] for _, attributes in outline.elements if "id" in attributes}
    assert {href[1:] for href in links if href.startswith("#")} <= ids


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://store.example/a%20b.jpg", True),
        ("http://127.0.0.1:8333/archive/a.jpg", True),
        ("../runs/r1/report.html", True),
        ("file:///data/a.jpg", True),
        ("javascript:alert(1)", False),
        (" javascript:alert(1)", False),
        ("JavaScript:alert(1)", False),
        ("data:text/html,<script>", False),
        ("//evil.example/a", False),
        ("https://user:secret@store.example/a.jpg", False),
        ("https://s/a.jpg?X-Amz-Signature=abc", False),
        ("https://s/a.jpg?AWSAccessKeyId=a&Signature=b&Expires=1", False),
        ("https://s/a.jpg?X-Amz-Security-Token=abc", False),
        ("http://[broken", False),
        ("", False),
        (None, False),
    ],
)
def test_which_urls_a_page_may_link_to(url, kept):
    assert (safe_url(url) is not None) == kept


def test_ids_are_unique_and_pictures_have_alternatives(outline):
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all("alt" in attributes for attributes in outline.all("img"))
    referred = [a["aria-labelledby"] for _, a in outline.elements if "aria-labelledby" in a]
    assert set(referred) <= set(ids)


def test_every_part_of_the_run_is_told(data, outline):
    text = re.sub(r"\s+", " ", " ".join(outline.text))
    for expected in (
        "The run is complete; one thing needs a look",
        "700 listed, 700 rows",
        "camera2: strips are darker than at calibration",
        "Not a readable image",
        "2.9 strips/s",
        "178 kB/s",
        data.table_uri,
        "tf_efficientnet_lite0",
        "Nearest normal",
        "The last 10 runs",
    ):
        assert expected in text, expected


def test_no_run_is_too_large_for_the_page(data):
    keys = pa.array([f"{'plant/' * 40}{number}.jpg" for number in range(30_000)])
    scores = data.scores.take([number % 700 for number in range(30_000)])
    scores = scores.set_column(0, SCORES.field(0), keys)
    heavy = replace(data.gallery[1], strip_jpeg=bytes(40_000))
    text = render_report(replace(data, scores=scores, num_listed=30_000, gallery=[heavy] * 400))
    outline = Outline(text)
    assert 6_500_000 < len(text.encode()) < 8_000_000
    assert 50 < len(outline.all("article")) < 400
    words = re.sub(r"\s+", " ", " ".join(outline.text))
    embedded = int(re.search(r"([\d,]+) of 30,000 rows are in this page", words)[1].replace(",", ""))
    assert 5_000 < embedded < 20_000
    assert f"The whole table is at {data.table_uri}" in words.replace("  ", " ")


def test_an_empty_run_and_one_without_calibration_have_a_page():
    data = make_night(0, 0, history=0)
    empty = Outline(render_report(replace(data, scores=SCORES.empty_table(), thresholds=(), shifts=(), reference={})))
    assert "No strip has a score" in empty.text
    plain = make_night(50, 3, history=0, groups=("",), thresholds=(), shifts=(), trends=(), reference={})
    text = " ".join(Outline(render_report(plain)).text)
    assert "all strips" in text
    assert "nothing is flagged" in text


def test_a_method_without_a_bank_shows_no_nearest_patch():
    data = make_night(60, 1, groups=("",), history=0)
    item = replace(data.gallery[0], nominal_patch_jpeg=None, nominal_key=None, worst_patch_jpeg=None, object_url=None)
    text = " ".join(Outline(render_report(replace(data, gallery=[item]))).text)
    assert "Nearest normal" not in text
    assert isinstance(item, GalleryItem)


def test_the_same_run_gives_the_same_page(data):
    assert render_report(data) == render_report(data)


def test_the_index_lists_runs_newest_first():
    history = make_night(10, 0, groups=GROUPS).history
    entries = [
        IndexEntry(run, f"{run.run_id}/report.html", "current" if n == 3 else "published", n % 3)
        for n, run in enumerate(history)
    ]
    entries[0] = replace(entries[0], report_href="javascript:alert(1)")
    outline = Outline(render_index(entries))
    links = [attributes["href"] for attributes in outline.all("a") if not attributes["href"].startswith("#")]
    assert links == [f"run{n}/report.html" for n in range(8, 0, -1)]
    assert outline.all("script") == []
    text = " ".join(outline.text)
    assert "2 warnings" in text
    assert "1 warning " in text
    assert outline.text.count("current") == 1
    assert "No run has finished yet" in " ".join(Outline(render_index([])).text)


def test_an_index_of_one_run_has_no_charts():
    summary = drift.summarize_run("only", "2026-11-25T04:41:00+00:00", SCORES.empty_table())
    assert "chart" not in [
        attributes.get("class")
        for _, attributes in Outline(render_index([IndexEntry(summary, None, "current")])).elements
    ]
