"""What is sealed is opened again as it was, for the same project and purpose, by whoever knows the secret."""

import base64

import pytest

from services.errors import InvalidRequest
from services.gateway.sealing import Sealer

TEXT = "The user wants tea. \N{TEACUP WITHOUT HANDLE}"


def sealer(secret: bytes = b"the secret of a cluster", purpose: str = "tests") -> Sealer:
    return Sealer(secret, purpose)


def refusal(by: Sealer, project: str, sealed: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        by.opened(project, sealed)
    return refused.value


def test_another_process_with_the_same_secret_opens_it() -> None:
    sealed = sealer().seal("one", TEXT)

    assert sealer().opened("one", sealed) == TEXT
    assert sealed.isascii()
    assert "tea" not in base64.urlsafe_b64decode(sealed).decode(errors="replace")


def test_the_same_text_is_never_sealed_the_same_way() -> None:
    assert len({sealer().seal("one", TEXT) for _ in range(8)}) == 8


@pytest.mark.parametrize(
    ("by", "project"),
    [
        (sealer(), "two"),
        (sealer(), "one\0"),
        (sealer(), ""),
        (sealer(secret=b"the secret of another"), "one"),
        (sealer(purpose="other tests"), "one"),
    ],
)
def test_what_others_sealed_is_refused(by: Sealer, project: str) -> None:
    assert refusal(by, project, sealer().seal("one", TEXT)).code == "invalid_encrypted_content"


def test_each_changed_byte_is_noticed() -> None:
    sealed = base64.urlsafe_b64decode(sealer().seal("one", TEXT))
    for place in range(len(sealed)):
        changed = bytes([*sealed[:place], sealed[place] ^ 1, *sealed[place + 1 :]])
        refusal(sealer(), "one", base64.urlsafe_b64encode(changed).decode())


@pytest.mark.parametrize("sealed", ["", "gAAA", "====", "no base64 at all", "\N{SNOWMAN}" * 8, "A" * 200])
def test_what_nobody_sealed_is_refused(sealed: str) -> None:
    assert refusal(sealer(), "one", sealed).code == "invalid_encrypted_content"


def test_a_refusal_quotes_the_ends_only() -> None:
    sealed = sealer().seal("one", TEXT)

    assert f"{sealed[:4]}...{sealed[-4:]} could not be verified" in refusal(sealer(), "two", sealed).message
