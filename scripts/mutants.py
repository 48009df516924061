"""What the scripts that check mutants share: a copy of the sources with changes, its build, and runs with limits."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def stop(message):
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(2)


def write_if_changed(path, text):
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def copy_tree(tree, changed):
    """Copies the sources to `tree`, and writes the texts of `changed` (path from the root: text) in their place."""
    for folder, folders, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [f for f in folders if not (f.startswith((".", "build")) or f in ("runs", "data-cache", "golden"))]
        for name in files:
            source, to = ROOT / here / name, tree / here / name
            if str(here / name) not in changed and (not to.exists() or to.stat().st_mtime != source.stat().st_mtime):
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, to)
    for name, text in changed.items():
        write_if_changed(tree / name, text)
    return tree


def build(tree, folder, options, targets):
    """Builds targets of the copy, CPU only; returns the folder."""
    configure = ["cmake", "-S", tree, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DLACUNA_WERROR=OFF",
                 "-DLACUNA_CUDA=OFF", "-DLACUNA_MPI=OFF", "-DLACUNA_NCCL=OFF", "-DLACUNA_BENCHMARKS=OFF",
                 "-DCMAKE_CXX_FLAGS=-w", *options]
    for command in (configure, ["ninja", "-C", folder, *targets]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            stop(f"the mutants do not compile:\n{done.stdout[-4000:]}")
    return folder


def run_program(command, environment, cpu_seconds, timeout, address_space=resource.RLIM_INFINITY):
    """Runs a test program; returns "passed", or how it failed. A hang is told by the processor time that it takes,
    because on a busy machine a good run may take long; one that waits forever, by the clock."""
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))

    try:
        done = subprocess.run(command, env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment}, timeout=timeout,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                              preexec_fn=limit)
    except subprocess.TimeoutExpired:
        return "hang"
    if done.returncode == 0:
        return "passed"
    if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
        return "hang"
    test = re.search(r"^TEST CASE:\s*(.*)", done.stdout, re.M)
    outcome = f"crash {-done.returncode}" if done.returncode < 0 else "failed"
    return outcome + (f": {test.group(1)[:60]}" if test else "")
