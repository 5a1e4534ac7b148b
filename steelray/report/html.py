"""`render_page`: a template as a self-contained HTML page that loads nothing and trusts no name.

Every value stays text, as templates escape it. The page's own policy (CSP) runs no script but its own, which it knows
by their digests.
"""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from steelray.report import words


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("steelray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=words.number,
        percent=words.percent,
        moment=words.moment,
        status_title=words.status_title,
        measure=words.measure_title,
        score=words.score,
        data_uri=_data_uri,
    )
    return environment


def _data_uri(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _own(name: str) -> Markup:
    """Return a style sheet or script of this package, unescaped."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])  # noqa: S704 (our own file)


def render_page(template: str, scripts: Sequence[str], **values: Any) -> str:
    """Render a template with the style sheet, and with scripts that its policy allows by their digests."""
    sources = [_own(name) for name in scripts]
    digests = (base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in sources)
    hashes = Markup(" ").join(Markup("'sha256-{}'").format(digest) for digest in digests)
    return (
        _environment()
        .get_template(template)
        .render(style=_own("style.css"), scripts=sources, script_hashes=hashes, **values)
    )
