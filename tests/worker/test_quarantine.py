import pytest

from services.engine.output import Ledger
from services.worker.quarantine import excess_of_quarantine


def ledger(quarantined: int) -> Ledger:
    return Ledger(total=100, quarantined=quarantined, reserved=10, leased=0, used=5, cached=0, free=85 - quarantined)


@pytest.mark.parametrize("quarantined", [0, 1, 50])
def test_within_its_share_quarantine_is_nobodys_concern(quarantined: int) -> None:
    assert excess_of_quarantine(ledger(quarantined), 0.5) is None


def test_more_than_its_share_is_told_with_numbers() -> None:
    assert excess_of_quarantine(ledger(51), 0.5) == "51 of 100 KV blocks are in quarantine"
