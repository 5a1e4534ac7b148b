"""The score table inside the page: compact columns of the rows that matter most, and counts of all rows."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steelray.models.calibration import ALL_STRIPS
from steelray.report.words import status_title
from steelray.schema import Status, Verdict

MAX_ROWS = 20_000
"""Rows in a page. A larger table gives its flagged rows, those without a score, then the highest scores."""


def states_of(scores: pa.Table) -> pa.ChunkedArray:
    """Return the state of every row: its verdict if it has a score, else its status."""
    flagged = pc.if_else(pc.fill_null(scores["is_anomalous"], False), Verdict.REVIEW.value, Verdict.NORMAL.value)
    scored = pc.equal(scores["status"], Status.OK.value)
    return pc.if_else(scored, pc.coalesce(scores["verdict"], flagged), scores["status"])


@dataclass(frozen=True)
class Counts:
    """Counts of a score table's rows."""

    scores: pa.Table

    @cached_property
    def _by_place(self) -> dict[tuple[str, str], int]:
        """Count the rows by group and state."""
        groups = pc.fill_null(self.scores["group"], ALL_STRIPS)
        places = pa.table({"group": groups, "state": states_of(self.scores)})
        counted = places.group_by(["group", "state"]).aggregate([([], "count_all")]).to_pylist()
        return {(row["group"], row["state"]): int(row["count_all"]) for row in counted}

    def of(self, group: str | None, *states: str) -> int:
        """Count the rows of a group (None: all) in one of these states."""
        return sum(count for (own, state), count in self._by_place.items() if group in (None, own) and state in states)

    def scored_in(self, group: str | None) -> int:
        """Count the rows of a group (None: all) with a score."""
        return self.of(group, *Verdict)

    @cached_property
    def groups(self) -> list[str]:
        """Return the groups of all rows, the one of rows without a group last."""
        return sorted({group for group, _ in self._by_place}, key=lambda name: (name == ALL_STRIPS, name))

    @cached_property
    def failures(self) -> dict[str, int]:
        """Count the rows without a score by status, most frequent first."""
        statuses = {state for _, state in self._by_place} - set(Verdict)
        return dict(sorted(((state, self.of(None, state)) for state in statuses), key=lambda entry: -entry[1]))

    @property
    def num_rows(self) -> int:
        """Count all rows."""
        return int(self.scores.num_rows)

    @property
    def num_scored(self) -> int:
        """Count the rows with a score."""
        return self.scored_in(None)

    @property
    def num_failed(self) -> int:
        """Count the rows without a score: the quarantine."""
        return self.num_rows - self.num_scored

    @property
    def num_flagged(self) -> int:
        """Count the rows above the review threshold."""
        return self.of(None, Verdict.REVIEW, Verdict.REJECT)


def _most_telling(scores: pa.Table, states: pa.ChunkedArray, limit: int) -> pa.Array:
    """Return the indices of at most `limit` rows: flagged, failed, then normal ones, each by falling score."""
    ranks: dict[str, int] = {Verdict.REJECT: 0, Verdict.REVIEW: 1, Verdict.NORMAL: 3}
    rank_N = np.array([ranks.get(state, 2) for state in states.to_pylist()])
    score_N = np.nan_to_num(scores["anomaly_score"].to_numpy().astype(np.float64), nan=-np.inf)
    return np.lexsort((-score_N, rank_N))[:limit]


def embedded_rows(scores: pa.Table, limit: int = MAX_ROWS) -> dict[str, list[Any]]:
    """Return the table as columns of short values, worst rows first.

    Returns:
        Values for JSON: the columns hold indices into `groups`, `states` (with titles) and `errors`.
    """
    states = states_of(scores)
    order = _most_telling(scores, states, limit)
    table = scores.set_column(scores.schema.get_field_index("status"), "status", states).take(order)

    def encoded(name: str) -> tuple[list[Any], list[int]]:
        column = pc.fill_null(table[name], "").combine_chunks().dictionary_encode()
        return column.dictionary.to_pylist(), column.indices.to_pylist()

    def rounded(name: str) -> list[float | None]:
        return [None if v is None or not np.isfinite(v) else float(f"{v:.6g}") for v in table[name].to_pylist()]

    groups, group_indices = encoded("group")
    names, state_indices = encoded("status")
    errors, error_indices = encoded("error")
    return {
        "groups": groups,
        "states": [[name, status_title(name)] for name in names],
        "errors": errors,
        "key": table["image_key"].to_pylist(),
        "group": group_indices,
        "state": state_indices,
        "error": error_indices,
        "score": rounded("anomaly_score"),
        "threshold": rounded("threshold"),
        "area": rounded("defect_area_fraction"),
        "brightness": rounded("mean_brightness"),
        "boxes": pc.fill_null(pc.list_value_length(table["boxes"]), 0).to_pylist(),
    }


def fitting_rows(scores: pa.Table, max_bytes: int, limit: int = MAX_ROWS) -> tuple[str, int]:
    """Return as many of the most telling rows as fit `max_bytes` of JSON, at most `limit`, and their number."""
    while True:
        rows = embedded_rows(scores, limit)
        text = script_json(rows)
        if len(text) <= max_bytes or limit <= 1:
            return text, len(rows["key"])
        limit = int(min(limit, len(rows["key"])) * 0.95 * max_bytes / len(text))


def script_json(value: Any) -> str:
    """Return JSON in which nothing can act as markup, for a `<script type="application/json">`."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
