#!/bin/bash
# One wheel, two TensorFlows: builds the wheel once, installs the very same file beside two versions of TensorFlow, and in
# each trains on two worker processes from outside the checkout.
#
#     tests/wheel_two_tensorflows.sh [PYTHON] [VERSION...]      default: python3 2.21 2.17
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
python="${1:-python3}"
shift || true
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(2.21 2.17)
case "$(uname -s)-$(uname -m)" in
  Linux-x86_64) package=tensorflow-cpu ;;
  *) package=tensorflow ;;
esac

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

"$python" -m venv "$scratch/build"
# A copy, so that nothing the checkout has lying around (libraries built in place, old objects) reaches the wheel.
(cd "$root" && tar cf - --exclude='*.so' --exclude='*.dylib' --exclude=__pycache__ \
  setup.py setup.cfg pyproject.toml README.md LICENSE tfdist) | (mkdir "$scratch/source" && tar xf - -C "$scratch/source")
start=$SECONDS
"$scratch/build/bin/pip" wheel --quiet --no-deps --wheel-dir "$scratch/wheel" "$scratch/source"
wheel="$(echo "$scratch"/wheel/*.whl)"
echo "built $(basename "$wheel") in $((SECONDS - start)) s, TensorFlow not installed"
case "$wheel" in *-py3-none-*) ;; *) echo "FAIL: not a py3-none-<platform> wheel" && exit 1 ;; esac

for version in "${versions[@]}"; do
  environment="$scratch/tensorflow-$version"
  "$python" -m venv "$environment"
  "$environment/bin/pip" install --quiet "$package==$version.*" "$wheel"
  (cd "$scratch" && TF_CPP_MIN_LOG_LEVEL=2 timeout 300 "$environment/bin/tfdist" run -n 2 "$root/tests/wheel_smoke.py")
  rm -rf "$environment"
done
echo "PASS: $(basename "$wheel") under TensorFlow ${versions[*]}"
