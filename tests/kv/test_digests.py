from hypothesis import given
from hypothesis import strategies as st

from services.kv.digests import payload_digest


@given(st.binary(min_size=1, max_size=4096), st.data())
def test_one_flipped_bit_changes_the_digest(block: bytes, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, 8 * len(block) - 1))
    flipped = bytearray(block)
    flipped[bit // 8] ^= 1 << bit % 8
    assert payload_digest(memoryview(block)) != payload_digest(memoryview(flipped))
