"""Which processes ``tandem up`` starts and what they are told."""

import sys
from pathlib import Path

import pytest

from services.cli.child import ProcessSpec
from services.cli.plan import HANDED_TO_ALL, HANDED_TO_WORKERS, Machine, Plan, make_plan
from services.cli.settings import UpSettings
from services.config import load
from services.decode.settings import DecodeSettings
from services.embed.settings import EmbedSettings
from services.errors import ConfigurationError
from services.gateway.settings import GatewaySettings
from services.prefill.settings import PrefillSettings
from services.resources import Cpus
from services.worker.settings import WorkerSettings

REDIS_URL = "redis://user:password@127.0.0.1:6379/0"
LAPTOP = Machine(Cpus((0, 1), None), 8 * 2**30, ())


def plan(
    *argv: str, machine: Machine = LAPTOP, environment: dict[str, str] | None = None, config_file: Path | None = None
) -> Plan:
    environment = {"PATH": "/bin", **(environment or {})}
    loaded = load(UpSettings, argv, prog="tandem up", environment=environment, config_file=config_file)
    return make_plan(loaded, machine, redis_url=REDIS_URL, environment=environment)


def options(spec: ProcessSpec, kind: str) -> list[str]:
    assert spec.command[:4] == (sys.executable, "-m", "services.cli", kind)
    return list(spec.command[4:])


def worker_settings(spec: ProcessSpec, settings_class: type[WorkerSettings] = DecodeSettings) -> WorkerSettings:
    kind = spec.name.split("-")[0]
    return load(settings_class, options(spec, kind), prog=f"tandem {kind}", environment=spec.environment).settings


def gateway_settings(made: Plan) -> GatewaySettings:
    argv, environment = options(made.gateway, "gateway"), made.gateway.environment
    return load(GatewaySettings, argv, prog="tandem gateway", environment=environment).settings


def everybodys_settings(made: Plan) -> list[GatewaySettings | WorkerSettings]:
    prefill = [worker_settings(worker.spec, PrefillSettings) for worker in made.prefill]
    return [gateway_settings(made), *prefill, *(worker_settings(worker.spec) for worker in made.decode)]


def test_the_default_is_one_of_each_with_a_core_each() -> None:
    made = plan("--data-dir", "/data")
    assert [worker.spec.name for worker in made.workers] == ["prefill-0", "decode-0"]
    assert [worker.spec.cores for worker in made.workers] == [(0,), (1,)]
    assert made.gateway.cores == ()
    prefill = worker_settings(made.prefill[0].spec, PrefillSettings)
    assert (prefill.host, prefill.port, prefill.admin_port, prefill.threads) == ("127.0.0.1", 0, 0, 1)
    assert prefill.secret_file == Path("/data/secret")
    assert prefill.kv_memory_bytes == int(8 * 2**30 * 0.4) // 2
    gateway = gateway_settings(made)
    assert (gateway.port, gateway.admin_port, gateway.serve_admin_on_main) == (8000, 0, True)
    assert gateway.redis_url == prefill.redis_url == REDIS_URL


def test_an_embedding_worker_has_no_share_of_the_machine() -> None:
    made = plan("--data-dir", "/data", "--cache-dir", "/cache", "--stop-timeout-s", "60")
    [spec] = made.embed
    argv = options(spec, "embed")
    embed = load(EmbedSettings, argv, prog="tandem embed", environment=spec.environment).settings

    assert (spec.name, spec.cores, len(made.workers)) == ("embed-0", (), 2)
    assert (embed.host, embed.port, embed.threads, embed.cache_dir) == ("127.0.0.1", 0, 1, Path("/cache"))
    assert (embed.secret_file, embed.redis_url, embed.drain_timeout_s) == (Path("/data/secret"), REDIS_URL, 55.0)
    assert plan("--embed", "0").embed == ()


def test_the_redis_password_is_in_no_command_line() -> None:
    made = plan()
    for spec in (made.gateway, *(worker.spec for worker in made.workers), *made.embed):
        assert "password" not in " ".join(spec.command)


def test_pools_have_the_wanted_sizes_and_share_all_cores() -> None:
    made = plan("--prefill", "1", "--decode", "3", machine=Machine(Cpus(tuple(range(8)), None), 2**33, ()))
    assert [worker.spec.name for worker in made.workers] == ["prefill-0", "decode-0", "decode-1", "decode-2"]
    assert [core for worker in made.workers for core in worker.spec.cores] == list(range(8))


def test_given_settings_are_handed_on_and_others_are_left_to_the_processes() -> None:
    made = plan("--model", "m", "--dtype", "float32", "--transport", "tcp", "--log-json")
    settings = worker_settings(made.decode[0].spec)
    assert (settings.model, settings.dtype, settings.transport, settings.log_json) == ("m", "float32", "tcp", True)
    assert "--device" not in made.decode[0].spec.command
    assert made.preparations[0].model == "m"
    assert made.preparations[0].dtype == "float32"
    assert len(made.preparations) == 1


def test_a_section_of_the_file_wins_over_its_top_level_and_over_what_up_would_suggest(tmp_path: Path) -> None:
    file = tmp_path / "tandem.yaml"
    file.write_text("model: top\ndecode:\n  model: own\n  threads: 7\n  kv_memory_share: 0.1\nup:\n  dtype: float32\n")
    made = plan("--config", str(file))
    decode = worker_settings(made.decode[0].spec)
    prefill = worker_settings(made.prefill[0].spec, PrefillSettings)
    assert (decode.model, decode.threads, decode.kv_memory_bytes, decode.dtype) == ("own", 7, 0, "float32")
    assert (prefill.model, prefill.threads) == ("top", 1)
    assert {preparation.model for preparation in made.preparations} == {"top", "own"}


def test_the_environment_of_up_does_not_move_the_workers_ports() -> None:
    made = plan(environment={"TANDEM_PORT": "9000", "TANDEM_HOST": "0.0.0.0", "TANDEM_THREADS": "3"})
    settings = worker_settings(made.decode[0].spec)
    assert (settings.host, settings.port, settings.threads) == ("127.0.0.1", 0, 3)
    assert made.gateway.command[made.gateway.command.index("--port") + 1] == "9000"


def test_gpus_are_shared_out_by_the_environment() -> None:
    machine = Machine(Cpus((0, 1), None), 2**33, ("0", "1"))
    made = plan("--device", "cuda", machine=machine)
    assert [worker.spec.environment["CUDA_VISIBLE_DEVICES"] for worker in made.workers] == ["0", "1"]
    assert "--kv-memory-bytes" not in made.decode[0].spec.command
    assert "CUDA_VISIBLE_DEVICES" not in plan(machine=machine).decode[0].spec.environment


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--device", "cuda"], "no GPU"),
        (["--dtype", "int3"], "prefill: dtype, from command line --dtype: expected one of bfloat16"),
    ],
)
def test_what_a_process_would_refuse_is_refused_before_anything_starts(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan(*argv)


def test_every_handed_on_field_is_one_of_up_and_of_those_that_get_it() -> None:
    assert {*HANDED_TO_ALL, *HANDED_TO_WORKERS} <= set(UpSettings.model_fields)
    for settings_class in (GatewaySettings, PrefillSettings, DecodeSettings):
        assert set(HANDED_TO_ALL) <= set(settings_class.model_fields)
    assert set(HANDED_TO_WORKERS) <= set(WorkerSettings.model_fields)
    assert not set(HANDED_TO_WORKERS) & set(GatewaySettings.model_fields)


def test_the_log_has_one_form_and_level_everywhere() -> None:
    made = plan("--log-json", "--log-level", "warning")
    told = everybodys_settings(made)
    assert [(settings.log_json, settings.log_level) for settings in told] == [(True, "warning")] * 3


@pytest.mark.parametrize(("stop_timeout_s", "drain_timeout_s"), [("60", 55.0), ("300", 295.0), ("4", 2.0)])
def test_every_process_drains_before_it_would_be_killed(stop_timeout_s: str, drain_timeout_s: float) -> None:
    made = plan("--stop-timeout-s", stop_timeout_s)
    told = everybodys_settings(made)
    assert [settings.drain_timeout_s for settings in told] == [drain_timeout_s] * 3
    assert {spec.stop_timeout_s for spec in (made.gateway, made.decode[0].spec)} == {float(stop_timeout_s)}


def test_a_drain_timeout_that_is_set_stands() -> None:
    made = plan(environment={"TANDEM_DRAIN_TIMEOUT_S": "7"})
    told = everybodys_settings(made)
    assert [settings.drain_timeout_s for settings in told] == [7.0] * 3
