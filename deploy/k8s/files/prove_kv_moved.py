"""Ask the cluster a question too long to stay home, and fail unless its KV moved between the pools.

Usage: python prove_kv_moved.py GATEWAY_URL DEADLINE_SECONDS; TANDEM_REDIS_URL says where to make a key.
"""

import contextlib
import json
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

PROJECT = "helm-test"
PROMPT_WORDS = 120
REQUEST_TIMEOUT_S = 120.0
PAUSE_S = 1.0


def main(gateway_url: str, deadline_s: float) -> None:
    """Try until an answer came through both pools or the time is over."""
    ends_s = time.monotonic() + deadline_s
    with api_key() as key:
        while True:
            outcome = attempt(gateway_url, key)
            sys.stdout.write(f"{json.dumps(outcome)}\n")
            sys.stdout.flush()
            if outcome.get("path") == "pd" and outcome["kv_bytes"] > 0 and outcome["verified"]:
                return
            if time.monotonic() > ends_s:
                sys.exit("no answer came through both pools")
            time.sleep(PAUSE_S)


@contextlib.contextmanager
def api_key() -> Iterator[str]:
    """Make a key, and revoke it afterwards."""
    key = keys("create", "--project", PROJECT).strip()
    try:
        yield key
    finally:
        rows = [line.split() for line in keys("list").splitlines()]
        for row in rows:
            if row[1] == PROJECT and row[-1] == key[-4:]:
                keys("revoke", row[0])


def keys(*arguments: str) -> str:
    """Run ``tandem keys`` and return what it prints."""
    command = [sys.executable, "-m", "services.cli", "keys", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def attempt(gateway_url: str, key: str) -> dict[str, Any]:
    """Return the proof of path of one answer, or why there is none."""
    try:
        model = ask(f"{gateway_url}/v1/models", key)["data"][0]["id"]
        words = " ".join(secrets.token_hex(2) for _ in range(PROMPT_WORDS))  # no cache has them
        body = {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 8}
        proof: dict[str, Any] = ask(f"{gateway_url}/v1/chat/completions", key, body)["usage"]["tandem"]
    except (OSError, LookupError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return proof


def ask(url: str, key: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the answer to a GET, or to a POST of ``body``."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=REQUEST_TIMEOUT_S) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
