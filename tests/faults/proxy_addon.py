"""An add-on of mitmproxy, not a test: breaks the requests and answers that a plan file names; signatures stay valid.

The plan is a JSON list of rules, read again when it changes:
    match    regular expression over "METHOD /path"
    fault    slow_down, reset, latency, truncate, corrupt, expired
    first    number of requests of each path to break (default: all)
    after    number of matching requests to let pass first (default: 0)
    seconds  latency
The plan's file name + ".log" gets a line per broken request: fault, method and path.
"""

import asyncio
import json
import os
import re
from collections import Counter
from typing import Any

from mitmproxy import http

PLAN = os.environ["STEELRAY_FAULT_PLAN"]
ANSWERS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
}


class Faults:
    def __init__(self) -> None:
        self._read_at = -1
        self._rules: list[dict[str, Any]] = []
        self._seen: Counter[int] = Counter()
        self._seen_path: Counter[tuple[int, str]] = Counter()

    def _rule(self, flow: http.HTTPFlow) -> dict[str, Any] | None:
        if (changed_at := os.stat(PLAN).st_mtime_ns) != self._read_at:
            self._read_at = changed_at
            with open(PLAN) as file:
                self._rules = json.load(file)
            self._seen.clear()
            self._seen_path.clear()
        line = f"{flow.request.method} {flow.request.path}"
        for number, rule in enumerate(self._rules):
            if not re.search(rule["match"], line):
                continue
            self._seen[number] += 1
            self._seen_path[number, line] += 1
            if self._seen[number] > rule.get("after", 0) and self._seen_path[number, line] <= rule.get("first", 10**9):
                with open(f"{PLAN}.log", "a") as log:
                    log.write(f"{rule['fault']} {line}\n")
                return rule
        return None

    async def request(self, flow: http.HTTPFlow) -> None:
        rule = self._rule(flow)
        if rule is None:
            return
        if rule["fault"] == "latency":
            await asyncio.sleep(rule["seconds"])
        elif rule["fault"] == "reset":
            flow.kill()
        elif rule["fault"] in ANSWERS:
            status, code, message = ANSWERS[rule["fault"]]
            body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            body = "" if flow.request.method == "HEAD" else body
            flow.response = http.Response.make(status, body, {"Content-Type": "application/xml"})
        else:
            flow.metadata["fault"] = rule["fault"]

    def response(self, flow: http.HTTPFlow) -> None:
        body = flow.response.raw_content if flow.response is not None else None
        if not body or flow.response is None:
            return
        if flow.metadata.get("fault") == "corrupt":
            flow.response.raw_content = body[:-1] + bytes([body[-1] ^ 1])
        elif flow.metadata.get("fault") == "truncate":
            # the announced length stays: the connection ends before it is reached
            flow.response.raw_content = body[: len(body) // 2]
            flow.response.headers["connection"] = "close"


addons = [Faults()]
