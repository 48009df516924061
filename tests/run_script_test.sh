#!/usr/bin/env bash
# Tests ./run as a user meets it. A copy of it in a folder with spaces sees stand-ins for the tools that install and
# build, so nothing is installed and nothing is compiled; the stand-ins write down how they were called.
#   tests/run_script_test.sh [path of run]
set -uo pipefail

script=$(readlink -f -- "${1:-$(dirname -- "${BASH_SOURCE[0]}")/../run}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root="$work/a clone"
calls=$work/calls
mkdir -p "$root" "$work/tools" "$work/else where"
cp "$script" "$root/run"
touch "$root/CMakePresets.json"

stand_in() { printf '#!/usr/bin/env bash\n%s\n' "$2" >"$work/tools/$1"; chmod +x "$work/tools/$1"; }
for tool in g++ sudo apt-get; do stand_in "$tool" "echo \"$tool \$*\" >>'$calls'"; done
stand_in id 'echo "${TEST_UID:-0}"'
stand_in dpkg-query 'shift 2; for p; do [[ " ${TEST_MISSING:-} " == *" $p "* ]] || echo "$p installed"; done'
stand_in cmake "echo \"cmake \$*\" >>'$calls'; [[ -z \${TEST_BROKEN:-} ]] || { echo 'cmake says why'; exit 3; }
  mkdir -p build; touch build/build.ninja; echo \"CMAKE_HOME_DIRECTORY:INTERNAL=\$PWD\" >build/CMakeCache.txt"
stand_in ninja "[[ \$3 != -n ]] || { [[ -x \$2/bin/enwik8 ]] && echo 'ninja: no work to do.'; exit 0; }
  echo \"ninja \$3\" >>'$calls'; mkdir -p \"\$2/bin\"
  printf '#!/usr/bin/env bash\necho \"in \$PWD\"; printf \"<%%s>\" \"\$@\"; exit 75\n' >\"\$2/bin/enwik8\"
  chmod +x \"\$2/bin/enwik8\""
export PATH="$work/tools:$PATH"
unset LACUNA_INSTALL

failures=0
# expect <what> <got> <pattern it must match>
expect() {
  # shellcheck disable=SC2053  # the right side is a pattern
  if [[ $2 != $3 ]]; then
    printf 'FAILED: %s\n  expected: %s\n  got:      %s\n' "$1" "$3" "$2"
    failures=$((failures + 1))
  fi
}

# Runs ./run from another directory; sets out, err, code, called.
run() {
  : >"$calls"
  out=$(cd "$work/else where" && "$root/run" "$@" 2>"$work/err" </dev/null)
  code=$?
  err=$(<"$work/err") called=$(<"$calls")
}

run --help
expect "help: code" "$code" 0
expect "help: names every program" "$out" "usage:*./run train*cifar10 enwik8*"
expect "help: installs and builds nothing" "$called" ""

run
expect "no arguments: code" "$code" 2
run cifar11 train
expect "unknown program: code" "$code" 2
expect "unknown program: says so and lists the programs" "$err" "run: unknown program 'cifar11'*cifar10 enwik8*"
expect "unknown program: stdout is empty" "$out" ""
expect "unknown program: builds nothing" "$called" ""
run build fast
expect "build with an argument: code" "$code" 2

TEST_UID=1000 TEST_MISSING="libhwy-dev libpng-dev" run train
expect "sudo without password: installs" "$called" "*sudo -n env DEBIAN_FRONTEND=noninteractive apt-get*install -y*libhwy-dev libpng-dev*"
rm -rf "$root/build"
stand_in sudo 'exit 1'
TEST_UID=1000 TEST_MISSING="libhwy-dev libpng-dev" run train
expect "no rights: code" "$code" 1
expect "no rights: tells the command" "$err" "*sudo apt-get install -y --no-install-recommends libhwy-dev libpng-dev"
expect "no rights: goes no further" "$called" ""

TEST_MISSING=libhwy-dev LACUNA_INSTALL=0 TEST_BROKEN=1 run train
expect "told not to install: configures at once" "$called" "cmake*"
expect "configuration fails: code" "$code" 1
expect "configuration fails: shows its output" "$err" "*cmake says why*run: failed: cmake*"

stand_in apt-get 'exit 100'
TEST_MISSING=libhwy-dev run train
expect "installation fails: code" "$code" 1
expect "installation fails: tells the command" "$err" "*apt-get install -y --no-install-recommends libhwy-dev"

run enwik8 sample --out 'a b' ''
expect "program: configures and builds it alone" "$called" $'cmake --fresh --preset release\nninja enwik8'
expect "program: its exit code" "$code" 75
expect "program: runs where the user is, with the arguments as given; nothing else on stdout" "$out" \
  "in $work/else where"$'\n'"<sample><--out><a b><>"
run train --steps 3
expect "train is enwik8 train" "$out" "*<train><--steps><3>"
expect "a second run neither configures nor builds" "$called" ""
expect "a second run says nothing" "$err" ""

mv "$root" "$work/moved"
root=$work/moved
run enwik8 plan
expect "moved folder: configures afresh" "$called" "cmake --fresh --preset release"
ln -s "$root/run" "$work/link"
out=$("$work/link" enwik8 plan 2>&1)
expect "through a symbolic link" "$out" "in *<plan>"

((failures == 0)) || exit 1
echo "all checks passed"
