#!/usr/bin/env bash
# Builds llama.cpp, as llama-cpp-python, for this host in a virtual environment: bench/peers/install_llama_cpp.sh DIR
# PYTHON names the interpreter. It needs a C++ compiler and some five minutes; what reads images is left out.
set -euo pipefail
dir=${1:?usage: install_llama_cpp.sh DIR}
"${PYTHON:-python3}" -m venv "$dir"
CMAKE_ARGS=-DLLAVA_BUILD=OFF "$dir/bin/python" -m pip --disable-pip-version-check install --quiet --no-binary llama-cpp-python \
	'llama-cpp-python>=0.3.16,<0.4'
"$dir/bin/python" -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__, "is ready")'
