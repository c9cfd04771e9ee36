"""How much of the KV pool may be in quarantine before the worker is of more use when it starts again.

Quarantine ends by a peer's word or death. A peer that gives neither, as a host that vanished, would hold its blocks
for ever; only the end of the process that owns the memory ends that for sure.
"""

from services.engine.output import Ledger


def excess_of_quarantine(ledger: Ledger, max_share: float) -> str | None:
    """Return what to tell operators if more than ``max_share`` of the pool is in quarantine, else None."""
    if ledger.quarantined <= max_share * ledger.total:
        return None
    return f"{ledger.quarantined} of {ledger.total} KV blocks are in quarantine"
