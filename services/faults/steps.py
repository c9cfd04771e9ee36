"""Every step of the protocol, by name: what a fault plan can name, and what the chaos tests go through.

    gateway ── decode.Generate ──> decode ── prefill.Run, prefill.Settle, prefill.Connect ──> prefill
                                   decode <── transfer.push ───────────────────────────────── prefill
    decode that leaves <── kv.Fetch, kv.Settle ── decode that goes on, after ── decode.Generate.sends.handed_over
    gateway ── kv.Watch ──> decode, prefill

A message of a call is one step, seen by both sides: the sender meets it just before the message leaves, the
receiver just before it is handed up.
"""

from collections.abc import Mapping

GATEWAY, DECODE, PREFILL = "gateway", "decode", "prefill"

REQUEST_STEPS: Mapping[str, tuple[str, ...]] = {
    "decode.Generate.received": (GATEWAY, DECODE),
    "decode.Generate.sends.accepted": (DECODE, GATEWAY),
    "prefill.Connect.received": (DECODE, PREFILL),
    "transfer.connect": (PREFILL,),
    "prefill.Connect.sends.reply": (PREFILL, DECODE),
    "prefill.Run.received": (DECODE, PREFILL),
    "prefill.Run.sends.accepted": (PREFILL, DECODE),
    "prefill.Run.sends.progress": (PREFILL, DECODE),
    "transfer.push.posted": (PREFILL,),
    "transfer.push.done": (PREFILL,),
    "transfer.notice.received": (DECODE,),
    "prefill.Run.sends.first_token": (PREFILL, DECODE),
    "decode.Generate.sends.tokens": (DECODE, GATEWAY),
    "prefill.Run.sends.pushed": (PREFILL, DECODE),
    "decode.Generate.sends.path": (DECODE, GATEWAY),
    "decode.Generate.sends.finished": (DECODE, GATEWAY),
    "prefill.Settle.received": (DECODE, PREFILL),
    "prefill.Settle.sends.reply": (PREFILL, DECODE),
}
"""Name to the roles that meet the step, about in the order of one request."""

HANDOVER_STEPS: Mapping[str, tuple[str, ...]] = {
    "decode.Generate.sends.handed_over": (DECODE, GATEWAY),
    "kv.Fetch.received": (DECODE,),
    "kv.Fetch.sends.found": (DECODE,),
    "kv.Fetch.sends.progress": (DECODE,),
    "kv.Fetch.sends.pushed": (DECODE,),
    "kv.Settle.received": (DECODE,),
    "kv.Settle.sends.reply": (DECODE,),
}
"""What is added when a decode worker leaves while it has sequences; both ends of a fetch are decode workers."""

ROUTING_STEPS: Mapping[str, tuple[str, ...]] = {
    "kv.Watch.received": (GATEWAY, DECODE, PREFILL),
    "kv.Watch.sends.reply": (DECODE, PREFILL, GATEWAY),
}
"""What gateways hear of prefix caches, beside any request: what is lost here costs time, never a token."""

STEPS: Mapping[str, tuple[str, ...]] = {**REQUEST_STEPS, **HANDOVER_STEPS, **ROUTING_STEPS}


def request_step(method: str) -> str:
    """Return the step of a call's request; ``method`` is ``/tandem.v1.Prefill/Run``."""
    return f"{_call(method)}.received"


def reply_step(method: str, kind: str) -> str:
    """Return the step of a message that answers a call; ``kind`` is the field of its ``oneof``, or ``reply``."""
    return f"{_call(method)}.sends.{kind}"


def _call(method: str) -> str:
    service, _, name = method.rpartition("/")
    return f"{service.rpartition('.')[2].lower()}.{name}"
