import argparse
import json
import stat
import sys
from pathlib import Path

import pytest

from bench.catalog import CHUNKED, LLAMA, PD, TANDEM, TANDEM_LOCAL, TANDEM_PD, WHOLE
from bench.peers import llama, vllm
from bench.processes import SystemFailed
from bench.rows import int4
from bench.run import parse_options, parts_of, systems_of

VLLM = vllm.Vllm(Path("/venv"), Path("/model"))


def fake_python(folder: Path, source: str) -> Path:
    """Return a virtual environment whose interpreter runs ``source`` whatever it is asked for."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "python"
    program.write_text(f"#!{sys.executable}\n{source}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def test_vllm_is_measured_as_the_three_systems_that_goals_speak_of() -> None:
    assert [system.name for system in VLLM.systems()] == [WHOLE, CHUNKED, PD]


def test_a_whole_server_has_all_cores_and_the_options_it_is_given() -> None:
    command = VLLM.command(9001, ("--max-num-batched-tokens", "256"))

    assert " ".join(command.arguments) == (
        "/venv/bin/vllm serve /model --host 127.0.0.1 --port 9001 --served-model-name model "
        "--dtype bfloat16 --max-model-len 4096 --max-num-batched-tokens 256"
    )
    assert command.environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in command.environment
    assert not command.cores


def test_half_a_pair_has_cores_a_side_channel_and_a_connector_of_its_own() -> None:
    command = VLLM.half(9002, 5602, (1, 3))

    assert json.loads(command.arguments[command.arguments.index("--kv-transfer-config") + 1]) == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        "kv_buffer_device": "cpu",
    }
    assert command.cores == (1, 3)
    assert command.environment["VLLM_CPU_OMP_THREADS_BIND"] == "1,3"
    assert command.environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5602"


def test_vllm_that_is_not_installed_is_one_failed_system(tmp_path: Path) -> None:
    for system in vllm.Vllm(tmp_path, tmp_path).systems():
        with pytest.raises(SystemFailed, match=r"did not start: .*bin/vllm"), system.serve(tmp_path):
            pass


@pytest.mark.parametrize("environment", [vllm.environment, llama.environment])
def test_a_folder_without_the_peer_is_refused_with_the_way_to_make_it(environment: object, tmp_path: Path) -> None:
    assert callable(environment)
    with pytest.raises(argparse.ArgumentTypeError, match=r"bench/peers/install_\w+\.sh"):
        environment(str(tmp_path))


def test_peers_come_after_ours_and_only_when_asked_for(tmp_path: Path) -> None:
    own = [TANDEM, TANDEM_PD, TANDEM_LOCAL]
    vllm_folder, llama_folder = tmp_path / "vllm", tmp_path / "llama"
    for file in (vllm_folder / "bin/vllm", llama_folder / "lib/python3.11/site-packages/llama_cpp/__init__.py"):
        file.parent.mkdir(parents=True)
        file.touch()
    peers = ["--vllm", str(vllm_folder), "--llama-cpp", str(llama_folder), "--peer", "other=http://host:1,name"]

    plain, with_peers = parse_options([]), parse_options(peers)

    assert [system.name for system in systems_of(plain)] == own
    assert {part.system for part in parts_of(plain)} == {TANDEM}
    assert [system.name for system in systems_of(with_peers)] == [*own, WHOLE, CHUNKED, PD, "other"]
    assert parts_of(with_peers)[-1].system == LLAMA


def test_llama_cpp_is_handed_the_work_and_its_figures_are_read(tmp_path: Path) -> None:
    source = (
        "import json, sys; work = json.load(sys.stdin); assert sys.argv[1] == '-I'; "
        "print(json.dumps({'tokens_per_s': work['max_tokens'], 'perplexity': len(work['text'])}))"
    )

    figures = llama.measure(fake_python(tmp_path, source))

    assert figures == {"int4": int4.work().max_tokens, "int4_perplexity": 512}


def test_llama_cpp_that_fails_is_a_failed_system(tmp_path: Path) -> None:
    with pytest.raises(SystemFailed, match="failed: no such file"):
        llama.measure(fake_python(tmp_path, "raise SystemExit('no such file')"))
