#!/usr/bin/env bash
# Rebuild requirements.lock: the newest versions that pyproject.toml allows, of all extras together.
#
# The lock is a constraints file (pip install -c), without hashes and without local versions, so that one file
# serves machines with and without a GPU: which build of torch is installed is the choice of the machine.
# torch is kept at the version of the present lock, because it decides what everything else may be;
# TORCH=x.y.z tools/lock.sh moves it.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
torch="${TORCH:-$(sed -n 's/^torch==//p' requirements.lock 2>/dev/null || true)}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

"$python" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet "torch${torch:+==$torch}"
"${pip[@]}" freeze --all | sed -n 's/^\(torch==[^+]*\).*/\1/p' >"$scratch/torch"
"${pip[@]}" install --quiet --constraint "$scratch/torch" --editable '.[dev]'

# pip and setuptools come with the environment; GPU libraries are what torch itself asks for on that machine.
"${pip[@]}" freeze --exclude-editable | sed 's/+[^ ;]*$//' \
    | grep -viE '^(pip|setuptools|wheel|nvidia|cuda|triton)[-_a-z0-9]*==' | LC_ALL=C sort -f >"$scratch/pins"
if grep -vE '^[A-Za-z0-9._-]+==[A-Za-z0-9.]+$' "$scratch/pins"; then
    echo "lock: the lines above are not plain pins; requirements.lock is left as it was" >&2
    exit 1
fi
version="$("$python" -c 'import platform; print(".".join(platform.python_version_tuple()[:2]))')"
{
    echo "# Constraints for all extras of pyproject.toml; written by \`make lock\` on Python $version, do not edit."
    cat "$scratch/pins"
} >"$scratch/lock"
mv "$scratch/lock" requirements.lock
echo "requirements.lock: $(wc -l <"$scratch/pins") packages"
