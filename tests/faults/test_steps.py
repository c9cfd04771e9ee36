from services.faults.steps import STEPS, reply_step, request_step
from services.rpc import tandem_pb2 as pb


def test_every_message_of_every_call_is_a_step() -> None:
    """Of those that serve tokens: Admin serves operators, Embedding moves no KV and is asked again by its callers."""
    others = {"Admin", "Embedding"}
    services = [service for name, service in pb.DESCRIPTOR.services_by_name.items() if name not in others]
    messages = set[str]()
    for service in services:
        for method in service.methods:
            call = f"/{service.full_name}/{method.name}"
            oneofs = method.output_type.oneofs_by_name
            kinds = [field.name for field in oneofs["event"].fields] if "event" in oneofs else ["reply"]
            messages |= {request_step(call), *(reply_step(call, kind) for kind in kinds)}
    assert messages == {step for step in STEPS if not step.startswith("transfer.")}


def test_every_step_is_met_by_somebody() -> None:
    assert all(roles for roles in STEPS.values())
