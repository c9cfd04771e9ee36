import dataclasses

from services.kv.card import ModelCard

CARD = ModelCard(
    model_name="smol",
    fingerprint="f",
    numerics_class="bf16",
    context_length=8192,
    vocab_size=49152,
    block_size=16,
    block_bytes=368640,
    eos_token_ids=(2,),
    tokenizer_json="{}",
    chat_template="{{ messages }} é",
    special_tokens={"bos_token": "<s>"},
    generation_defaults={"temperature": 0.2},
)


def test_a_card_survives_its_json() -> None:
    assert ModelCard.from_json(CARD.to_json()) == CARD
    assert ModelCard.from_json(CARD.to_json()).digest == CARD.digest


def test_any_change_gives_another_digest() -> None:
    assert dataclasses.replace(CARD, context_length=1).digest != CARD.digest
