import re
from dataclasses import replace
from html.parser import HTMLParser

import pyarrow as pa
import pytest

from steelray.report import drift
from steelray.report.data import IndexEntry, safe_url
from steelray.report.page import render_index, render_report
from steelray.schema import SCORES
from tests.report.examples import HOSTILE_KEY, example_run

VOID = {"meta", "link", "img", "input", "br"}


class Outline(HTMLParser):
    """The elements of a page with their attributes, in order; tags that do not nest fail."""

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


def text_of(text):
    """Return the words of a page."""
    return re.sub(r"\s+", " ", " ".join(Outline(text).text))


@pytest.fixture(scope="module")
def outline(page):
    return Outline(page.read_text(encoding="utf-8"))


def test_the_page_holds_no_markup_but_its_own(data, outline, page):
    assert data.gallery[0].image_key == HOSTILE_KEY
    assert len(outline.all("script")) == 3  # the table's JSON and two of its own
    assert all(set(attributes) <= {"type", "id"} for attributes in outline.all("script"))
    assert not [name for _, attributes in outline.elements for name in attributes if name.startswith("on")]
    assert HOSTILE_KEY in outline.text
    assert HOSTILE_KEY not in page.read_text(encoding="utf-8")


def test_a_hostile_group_status_error_and_detail_stay_text():
    groups = ("<img src=x onerror=alert(1)>", "camera2")
    data = example_run(300, 2, groups=groups, details={"<script>a</script>": "<script>b</script>"})
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
    assert len(outside) == 20
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
        "Run report",
        "The run is complete; one thing needs a look",
        "900 listed, 900 rows",
        "camera2: strips are darker than at calibration",
        "Not a readable image",
        "3.8 strips/s",
        "229 kB/s",
        data.table_uri,
        "tf_efficientnet_lite0",
        "Nearest normal",
        "The last 10 runs",
    ):
        assert expected in text, expected


def test_no_run_is_too_large_for_the_page(data):
    keys = pa.array([f"{'plant/' * 40}{number}.jpg" for number in range(30_000)])
    scores = data.scores.take([number % 900 for number in range(30_000)])
    scores = scores.set_column(0, SCORES.field(0), keys)
    heavy = replace(data.gallery[1], strip_jpeg=bytes(40_000))
    text = render_report(replace(data, scores=scores, num_listed=30_000, gallery=[heavy] * 400))
    assert 6_500_000 < len(text.encode()) < 8_000_000
    assert 50 < text.count("<article") < 400
    words = text_of(text)
    embedded = int(re.search(r"([\d,]+) of 30,000 rows are in this page", words)[1].replace(",", ""))
    assert 5_000 < embedded < 20_000
    assert f"The whole table is at {data.table_uri}" in words


def test_an_empty_run_and_one_without_calibration_have_a_page():
    bare = {"history": 0, "thresholds": (), "shifts": (), "trends": (), "reference": {}}
    assert "No strip has a score" in text_of(render_report(example_run(0, 0, **bare)))
    plain = text_of(render_report(example_run(50, 3, groups=("",), **bare)))
    assert "all strips" in plain
    assert "nothing is flagged" in plain


@pytest.mark.parametrize(("by_hand", "shown"), [(None, True), (2.0, True), (0.0, False)])
def test_a_strip_is_compared_with_the_threshold_that_counts(data, by_hand, shown):
    text = text_of(render_report(replace(data, threshold_override=by_hand)))
    assert ("the review threshold" in text) == shown  # no score is a multiple of 0
    assert by_hand != 2.0 or "6.00× the review threshold" in text


def test_a_method_without_a_bank_shows_no_nearest_patch(data):
    item = replace(data.gallery[0], nominal_patch_jpeg=None, nominal_key=None, worst_patch_jpeg=None, object_url=None)
    assert "Nearest normal" not in text_of(render_report(replace(data, gallery=[item])))


def test_the_same_run_gives_the_same_page(data, page):
    assert render_report(data) == page.read_text(encoding="utf-8")


def test_the_index_lists_runs_newest_first(data):
    entries = [
        IndexEntry(run, f"{run.run_id}/report.html", "current" if n == 3 else "published", n % 3)
        for n, run in enumerate(data.history)
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
    assert "No run has finished yet" in text_of(render_index([]))


def test_an_index_of_one_run_has_no_charts():
    summary = drift.summarize_run("only", "2026-11-25T04:41:00+00:00", SCORES.empty_table())
    assert 'class="chart"' not in render_index([IndexEntry(summary, None, "current")])
