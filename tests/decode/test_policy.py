from services.decode.policy import PrefillPolicy
from services.decode.settings import DecodeSettings
from services.engine.output import StepStats
from services.rpc import tandem_pb2 as pb
from services.worker.throughput import Throughput

DEFAULTS = DecodeSettings()
POLICY = PrefillPolicy(
    always_local_tokens=DEFAULTS.local_prefill_tokens,
    max_local_tokens=DEFAULTS.max_local_prefill_tokens,
    max_mixed_prefill_tokens=DEFAULTS.max_mixed_prefill_tokens,
)
IDLE = [pb.PrefillCandidate(member_id="idle", prefill_tokens_per_s=1000)]
BUSY = [pb.PrefillCandidate(member_id="busy", prefill_tokens_per_s=1000, queued_tokens=1_000_000)]


def throughput(*, prefill_tokens_per_s: float = 1000.0, generating_step_s: float = 0.05) -> Throughput:
    known = Throughput()
    known.prefill_tokens_per_s = prefill_tokens_per_s
    known.generating_step_s = generating_step_s
    return known


def is_local(tokens: int, candidates: list[pb.PrefillCandidate], *, num_running: int = 0) -> bool:
    return POLICY.is_local(tokens, candidates, num_running=num_running, throughput=throughput())


def test_very_short_prompts_always_stay_home() -> None:
    assert is_local(DEFAULTS.local_prefill_tokens, IDLE, num_running=50)


def test_long_prompts_go_away_however_busy_the_other_side_is() -> None:
    assert not is_local(DEFAULTS.max_local_prefill_tokens + 1, BUSY)


def test_between_them_a_busy_prefill_worker_keeps_a_prompt_home() -> None:
    assert is_local(DEFAULTS.max_local_prefill_tokens, BUSY, num_running=4)


def test_between_them_running_streams_send_a_prompt_away() -> None:
    assert is_local(DEFAULTS.local_prefill_tokens + 1, IDLE)
    assert not is_local(DEFAULTS.local_prefill_tokens + 1, IDLE, num_running=1)


def test_a_faster_prefill_worker_wins() -> None:
    faster = [pb.PrefillCandidate(member_id="faster", prefill_tokens_per_s=100_000)]
    assert not is_local(DEFAULTS.max_local_prefill_tokens, faster)


def test_without_a_measured_rate_or_a_candidate_nothing_is_predicted() -> None:
    unknown = Throughput()
    assert not POLICY.is_local(100, IDLE, num_running=0, throughput=unknown)
    assert not is_local(100, [])


def test_rates_are_learnt_from_the_steps_they_describe() -> None:
    learnt = Throughput()
    learnt.observe(StepStats(num_requests=1, num_tokens=512, num_prompt_tokens=512), 0.5)
    learnt.observe(StepStats(num_requests=4, num_tokens=4, num_prompt_tokens=0), 0.04)
    learnt.observe(StepStats(num_requests=1, num_tokens=0, num_prompt_tokens=0), 9.0)
    assert learnt.prefill_tokens_per_s == 1024
    assert learnt.generating_step_s == 0.04
