"""Write the tables of benchmarks/README.md from the result files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def write_readme(readme: Path, results: Path) -> None:
    """Replace the text between the markers."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    records.pop("detection", None)  # it has a page of its own, docs/detection.md
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(before + BEGIN + "\n" + "\n".join(lines(records)) + "\n" + END + after)


def lines(records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield Markdown lines, one table per benchmark."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for record in records.values():
        grouped.setdefault(record["benchmark"], []).append(record)
    for benchmark, table in TABLES.items():
        if benchmark in grouped:
            yield from table(grouped[benchmark])
            yield f"_{_where(grouped[benchmark])}_"
            yield ""


def _where(records: list[dict[str, Any]]) -> str:
    """Name dates, hardware and versions of the records, and the load before their cases."""
    first, versions = records[0], records[0]["versions"]
    dates = sorted({record["date"][:10] for record in records})
    loads = [record["load_average_before"] for record in records if record["load_average_before"] is not None]
    shown = ("python", "torch", "faiss-gpu", "faiss-cpu", "openvino", "ray")
    packages = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    load = f"; load before the cases {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    commits = ", ".join(sorted({str(record["git_commit"]) for record in records}))
    return (
        f"{when}, {first['hardware']['cores']} cores of {first['hardware']['cpu']}; {packages}; commit {commits}{load}."
    )


def _by_size(records: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return sorted((record["result"] for record in records if key in record["result"]), key=lambda row: row[key])


def coreset_table(records: list[dict[str, Any]]) -> Iterator[str]:
    yield "### Coreset"
    yield ""
    yield "Seconds per selection, median of three. Where a number of picks is given, only these were timed, and their"
    yield "time was scaled up to the whole selection. Cover radii are measured in all dimensions."
    yield ""
    yield (
        "| points x dim | picks | steelray s | radius | textbook s | ratio | matrix-vector loop s | ratio "
        "| anomalib 2.7 s | ratio | radius |"
    )
    yield "|---" * 11 + "|"
    for row in _by_size(records, "points"):
        cells = [f"{row['points']:,} x {row['dim']}", f"{row['picks']:,}", f"{row['steelray']['seconds']:.2f}"]
        cells.append(f"{row['steelray']['cover_radius']:.3f}")
        for name in ("textbook", "textbook_matrix_vector"):
            cells += [_seconds(row[name], row["picks"]), f"{row[name]['ratio']:.1f}x"]
        if "anomalib" in row:
            radius = row["anomalib"].get("cover_radius")
            cells += [_seconds(row["anomalib"], row["picks"], whole=radius is not None)]
            cells += [f"{row['anomalib']['ratio']:.1f}x", f"{radius:.3f}" if radius else "–"]
        else:
            cells += ["–"] * 3
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _seconds(entry: dict[str, Any], picks: int, whole: bool = False) -> str:
    measured = entry["measured_picks"]
    return f"{entry['seconds']:.0f}" + ("" if whole or measured >= picks else f" ({measured} picks)")


def search_table(records: list[dict[str, Any]]) -> Iterator[str]:
    yield "### Search"
    yield ""
    yield "Queries per second for one nearest neighbour, in batches of 6,400, two of them in flight. The difference is"
    yield "between squared distances from the shards and from the replicated bank, as a share of the largest distance."
    yield ""
    yield "| vectors x dim | replicated | 1 shard | 2 shards | 4 shards | largest difference |"
    yield "|---" * 6 + "|"
    for row in _by_size([r for r in records if "replicated" in r["result"]], "vectors"):
        placed = [row[name] for name in ("replicated", "1 shards", "2 shards", "4 shards")]
        worst = max(entry["largest_difference"] for entry in placed)
        rates = " | ".join(f"{entry['queries_per_s']:,.0f}" for entry in placed)
        yield f"| {row['vectors']:,} x {row['dim']} | {rates} | {worst:.1g} |"
    yield ""
    yield "| index | vectors x dim | queries/s | bytes per vector | recall@1 | mean error of the distance |"
    yield "|---" * 6 + "|"
    for row in _by_size([r for r in records if "exact" in r["result"]], "vectors"):
        for name, entry in row.items():
            if isinstance(entry, dict):
                yield (
                    f"| {name} | {row['vectors']:,} x {row['dim']} | {entry['queries_per_s']:,.0f} "
                    f"| {entry['bytes_per_vector']} | {entry['recall_at_1']:.4f} | {entry['distance_error']:.2%} |"
                )
    yield ""
    yield "SQ and PQ indexes were slower than exact search and less exact, and were removed after this measurement."
    yield ""


OTHER_WAYS = {
    "bare_loop_same_backend": "bare loop, same backend",
    "bare_loop_eager_channels_last": "bare loop, eager PyTorch, channels last",
    "bare_loop_eager": "bare loop, eager PyTorch",
    "anomalib_predict": "anomalib 2.7 Engine.predict",
}


def pipeline_table(records: list[dict[str, Any]]) -> Iterator[str]:
    yield "### Pipeline"
    yield ""
    yield "Strips of 1600x256 per second, without start-up; same images, weights and bank."
    yield ""
    yield "| bank | Ray job | " + " | ".join(OTHER_WAYS.values()) + " |"
    yield "|---" * (2 + len(OTHER_WAYS)) + "|"
    for row in _by_size(records, "vectors"):
        cells = [f"{row['vectors']:,} vectors", f"**{row['ray_job']['strips_per_s']:.2f}**"]
        for name in OTHER_WAYS:
            entry = row.get(name)
            cells.append(
                f"{entry['strips_per_s']:.2f} (Ray job {entry['ray_job_is_faster_by']:.2f}x)" if entry else "–"
            )
        yield "| " + " | ".join(cells) + " |"
    yield ""
    for row in _by_size(records, "vectors"):
        other = row.get("anomalib_predict")
        yield (
            f"With {row['vectors']:,} vectors and {row['strips']} strips, the whole job from listing to publishing "
            f"runs at {row['ray_job']['whole_job_strips_per_s']:.2f} strips/s."
            + (f" Scores differ from anomalib's by at most {other['largest_score_difference']:.2g}." if other else "")
        )
    yield ""


def growth_table(records: list[dict[str, Any]]) -> Iterator[str]:
    yield "### Growth"
    yield ""
    yield "| images of 256x256 | ms per image, with start-up | scoring s | whole job s | driver memory before | peak |"
    yield "|---" * 6 + "|"
    for row in _by_size(records, "images"):
        yield (
            f"| {row['images']:,} | {row['milliseconds_per_image']:.2f} | {row['scoring_s']:.1f} "
            f"| {row['whole_job_s']:.1f} | {_mib(row['driver_memory_before_bytes'])} "
            f"| {_mib(row['driver_memory_peak_bytes'])} |"
        )
    yield ""
    for row in _by_size(records, "keys"):
        yield (
            f"Planning {row['keys']:,} keys takes {row['seconds']:.1f} s (listing {row['last_run']['list_s']:.1f} s, "
            f"{row['tasks']:,} reading tasks {row['last_run']['tasks_s']:.1f} s) and {_mib(row['memory_bytes'])} more "
            f"than the idle program, {_mib(row['peak_memory_bytes'])} in all."
        )
        yield ""
    for row in _by_size(records, "old_patches"):
        yield (
            f"A bank of {row['vectors_before']:,} vectors from {row['old_patches']:,} patches learns "
            f"{row['new_patches']:,} more patches in {row['grow_s']:.2f} s and grows by {row['vectors_added']:,} "
            f"vectors. To build a bank of that size from all patches takes {row['rebuild_s']:.2f} s. "
            f"The cover radius is {row['cover_radius_grown']:.3f} grown and {row['cover_radius_rebuilt']:.3f} rebuilt "
            f"({row['cover_radius_ratio']:.3f}x)."
        )
        yield ""


def nightly_table(records: list[dict[str, Any]]) -> Iterator[str]:
    yield "### A second attempt"
    yield ""
    for row in _by_size(records, "rerun_of"):
        yield (
            f"A run of {row['rerun_of']:,} images takes {row['first_s']:.0f} s. Once it is complete, "
            f"the same command takes {row['again_s']:.1f} s."
        )
    for row in _by_size(records, "resume_of"):
        left = ", ".join(f"{turn['left']:,}" for turn in row["turns"])
        yield (
            f"Runs of {row['resume_of']:,} images were killed with {left} left. To finish them takes "
            f"{row['resumed_over_fresh']:.2f}x the time of a new run over as many images, start-up included (median)."
        )
    yield ""


def nodes_table(records: list[dict[str, Any]]) -> Iterator[str]:
    yield "### Several nodes"
    yield ""
    for row in _by_size(records, "images_on_nodes"):
        rates = ", ".join(f"{rate:.1f} on {number}" for number, rate in row["images_per_s"].items())
        yield (
            f"Images scored per second, {row['images_on_nodes']:,} images, a bank in two shards, on raylets that share "
            f"the cores of this machine: {rates} nodes (medians)."
        )
    for row in _by_size(records, "images_with_a_kill"):
        yield (
            f"Runs of {row['images_with_a_kill']:,} images on two nodes, one of which is killed and replaced once rows "
            f"are stored, take {row['killed_over_clean']:.2f}x the scoring time of an undisturbed run (median). Every "
            "image is scored once."
        )
    yield ""


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def contamination_table(records: list[dict[str, Any]]) -> Iterator[str]:
    yield "### Defects among the nominal images"
    yield ""
    settings = records[0]["settings"]
    yield "A share of the nominal images is replaced by defective ones. Figures without → with `coreset.drop_suspects`,"
    yield f"the mean of {settings['seeds']} draws; banks of at most {settings['max_centers']:,} vectors."
    yield "Defective images inside the bank are scored like fresh ones, and judged against good test images. The"
    yield f"threshold is set on all fitted images, for {settings['asked_rate']:.0%} false alarms (leave-one-out)."
    yield ""
    for record in records:
        yield from contamination_rows(record["result"])
    yield ""


def contamination_rows(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the table of rows that come in pairs: without dropping suspects, and with."""
    names = {
        "auroc_inside": "AUROC inside",
        "auroc_other": "AUROC of others",
        "recall_inside": "recall inside",
        "recall_other": "recall of others",
        "false_alarm_rate": "false alarms",
    }
    yield f"| dataset | fitted | defective | {' | '.join(names.values())} | dropped |"
    yield "|---" * (len(names) + 4) + "|"
    for off, on in zip(rows[::2], rows[1::2], strict=True):
        cells = [f"{off[name]:.3f} → {on[name]:.3f}" if name in off else "–" for name in names]
        columns = [off["dataset"], off["num_fit"], f"{off['share']:.0%}", *cells, f"{on['dropped']:.0f}"]
        yield f"| {' | '.join(map(str, columns))} |"


TABLES = {
    "coreset": coreset_table,
    "search": search_table,
    "pipeline": pipeline_table,
    "growth": growth_table,
    "nightly": nightly_table,
    "nodes": nodes_table,
    "contamination": contamination_table,
}
