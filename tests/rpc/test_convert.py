from services.kv.sampling import SamplingParams
from services.rpc import tandem_pb2 as pb
from services.rpc.convert import sampling_from_message, sampling_to_message


def test_parameters_survive_the_wire() -> None:
    params = SamplingParams(
        seed=2**64 - 1,
        max_tokens=7,
        min_tokens=2,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        presence_penalty=-1.0,
        frequency_penalty=0.5,
        repetition_penalty=1.2,
        logit_bias={5: -100.0, 9: 3.5},
        logprobs=0,
        stop_token_ids=frozenset({2, 3}),
        choice_index=4,
    )
    message = pb.SamplingParams.FromString(sampling_to_message(params).SerializeToString())
    assert sampling_from_message(message) == params


def test_no_logprobs_is_not_zero_logprobs() -> None:
    params = SamplingParams(seed=0, max_tokens=1)
    assert sampling_from_message(sampling_to_message(params)).logprobs is None
