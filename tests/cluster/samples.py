"""Members, cards and files for tests."""

from dataclasses import replace
from pathlib import Path

from services.cluster.registry import Member, MemberLoad, Role
from services.kv.card import ModelCard

CARD = ModelCard(
    model_name="tiny",
    fingerprint="f" * 64,
    numerics_class="cpu",
    context_length=128,
    vocab_size=100,
    block_size=16,
    block_bytes=1024,
    eos_token_ids=(2, 3),
    tokenizer_json='{"text": "é漢"}',
    chat_template="{{ messages }}",
    special_tokens={"bos_token": "<s>"},
    generation_defaults={"temperature": 0.7},
)

SECRET = b"0123456789abcdef" * 2


def member(member_id: str, *, role: Role = Role.DECODE, card: ModelCard = CARD, running: int = 0) -> Member:
    return Member(
        member_id=member_id,
        role=role,
        address="127.0.0.1:4000",
        model_name=card.model_name,
        card_digest=card.digest,
        fingerprint=card.fingerprint,
        transport="inproc",
        protocol_version=1,
        load=MemberLoad(running=running, prefill_tokens_per_s=0.1 + 0.2),
    )


def other_card(name: str) -> ModelCard:
    return replace(CARD, model_name=name)


def append_only_files(data_dir: Path) -> list[Path]:
    """Return what a Redis of any version keeps its data in."""
    return [path for path in (data_dir / "redis").rglob("appendonly.aof*") if path.is_file()]
