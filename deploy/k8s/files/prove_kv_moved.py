"""Ask the cluster a question too long to stay home, and fail unless its KV moved between the pools.

Usage: python prove_kv_moved.py GATEWAY_URL DEADLINE_SECONDS; TANDEM_REDIS_URL says where to make a key.
"""

import contextlib
import http.client
import json
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

PROJECT = "helm-test"
PROMPT_WORDS = 120
REQUEST_TIMEOUT_S = 120.0
PAUSE_S = 1.0


def main(gateway_url: str, deadline_s: float) -> None:
    """Try until an answer came through both pools or the time is over."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    ends_s = time.monotonic() + deadline_s
    with api_key() as key:
        while True:
            left_s = ends_s - time.monotonic()
            outcome = attempt(gateway_url, key, min(max(left_s, PAUSE_S), REQUEST_TIMEOUT_S))
            sys.stdout.write(f"{json.dumps(outcome)}\n")
            sys.stdout.flush()
            lacking = what_lacks(outcome)
            if not lacking:
                return
            if time.monotonic() >= ends_s:
                sys.exit(f"no answer proved that KV moved between the pools: {lacking}")
            time.sleep(PAUSE_S)


def what_lacks(outcome: dict[str, Any]) -> str:
    """Return what is missing in the proof of path; nothing if KV moved, and arrived as it was sent."""
    if "error" in outcome:
        return str(outcome["error"])
    wanted = {"path": outcome.get("path") == "pd", "kv_bytes": outcome.get("kv_bytes", 0) > 0}
    wanted["verified"] = outcome.get("verified") is True
    return ", ".join(f"{name} is {json.dumps(outcome.get(name))}" for name, is_met in wanted.items() if not is_met)


@contextlib.contextmanager
def api_key() -> Iterator[str]:
    """Make a key, and revoke it afterwards, with whatever an earlier test that was killed left."""
    revoke_keys()
    try:
        yield keys("create", "--project", PROJECT).strip()
    finally:
        revoke_keys()


def revoke_keys() -> None:
    """Revoke all keys of the test's project."""
    for line in keys("list").splitlines():
        key_id, *columns = re.split(r"\s{2,}", line.strip())
        if columns[:1] == [PROJECT]:
            keys("revoke", key_id)


def keys(*arguments: str) -> str:
    """Run ``tandem keys`` and return what it prints."""
    command = [sys.executable, "-m", "services.cli", "keys", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def attempt(gateway_url: str, key: str, timeout_s: float) -> dict[str, Any]:
    """Return the proof of path of one answer, or ``error`` and why there is none."""
    try:
        model = ask(f"{gateway_url}/v1/models", key, timeout_s)["data"][0]["id"]
        words = " ".join(secrets.token_hex(2) for _ in range(PROMPT_WORDS))  # no cache has them
        body = {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 8}
        answer = ask(f"{gateway_url}/v1/chat/completions", key, timeout_s, body)
        proof: dict[str, Any] = answer["usage"]["tandem"]
    except (OSError, http.client.HTTPException, LookupError, TypeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return proof


def ask(url: str, key: str, timeout_s: float, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the answer to a GET, or to a POST of ``body``."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=timeout_s) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
