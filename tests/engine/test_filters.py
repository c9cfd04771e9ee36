import pytest
import torch

from services.engine.filters import probabilities
from services.kv.sampling import SamplingParams

torch.set_num_threads(1)


def params(row: int) -> SamplingParams:
    return SamplingParams(
        seed=row,
        max_tokens=1,
        temperature=0.3 + row / 20,
        top_p=[1.0, 0.9, 0.999, 0.5][row % 4],
        top_k=[0, 40, 700][row % 3],
        min_p=[0.0, 0.001][row % 2],
    )


@pytest.mark.parametrize("vocab", [5, 1_003, 49_152])
@pytest.mark.parametrize("rows", [2, 3, 16, 17])
def test_probabilities_and_their_sums_have_the_same_bits_alone_and_in_a_batch(rows: int, vocab: int) -> None:
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(rows)) * 3
    batch = [params(row) for row in range(rows)]
    together = probabilities(logits, batch)
    sums = together.double().cumsum(dim=-1)
    for row in range(rows):
        alone = probabilities(logits[row : row + 1].clone(), [batch[row]])
        assert torch.equal(together[row], alone[0])
        assert torch.equal(sums[row], alone.double().cumsum(dim=-1)[0])


def test_the_nucleus_is_the_same_whether_found_among_candidates_or_by_sorting() -> None:
    vocab = 2_000
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(0)) * 3
    row = torch.softmax(logits - logits.amax(), dim=-1)[0]
    for top_p in (0.1, 0.5, 0.9, 0.99, 0.9999, 1.0 - 1e-12):
        mass = row.sort(descending=True).values.double().cumsum(0)
        expected = min(int((mass < top_p).sum()) + 1, vocab)
        kept = probabilities(logits, [SamplingParams(seed=0, max_tokens=1, top_p=top_p)])
        assert int((kept > 0).sum()) == expected
