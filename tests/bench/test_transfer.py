from bench.rows import transfer


def test_blocks_and_one_descriptor_move_the_same_bytes() -> None:
    figures = transfer.measure(num_blocks=2, rounds=1)

    assert figures.num_bytes == 2 * transfer.BLOCK_BYTES
    assert figures.blocks_ms > 0
    assert figures.whole_ms > 0


def test_digests_take_some_time() -> None:
    assert transfer.measure_digests(num_blocks=1, rounds=1) > 0
