"""Workers of a cluster in one process as a gateway sees them."""

from services.cluster.registry import Member, MemberLoad
from services.rpc.versions import PROTOCOL_VERSION
from tests.inprocess.cluster import Worker


def member_of(worker: Worker, *, card_digest: str = "card") -> Member:
    node = worker.node
    return Member(
        member_id=node.member_id,
        role=node.role,
        address=worker.address,
        model_name="hash",
        card_digest=card_digest,
        fingerprint=node.layout.fingerprint,
        transport="inproc",
        protocol_version=PROTOCOL_VERSION,
        draining=node.is_draining,
        load=MemberLoad(available_blocks=60, total_blocks=64, prefill_tokens_per_s=1000.0),
    )
