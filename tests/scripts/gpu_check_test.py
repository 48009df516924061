"""scripts/gpu_check and gpu_bundle with stages and a build of our own: time limits, results of cut-off runs, the table."""

import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import unittest
import unittest.mock
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True


def load(name):
    loader = importlib.machinery.SourceFileLoader(name, str(ROOT / "scripts" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


gpu_check, gpu_bundle = load("gpu_check"), load("gpu_bundle")
gpu_results = sys.modules["gpu_results"]


def fake(name, code):
    """A stage whose command is a Python program; each line of JSON that it prints is a row."""

    def run(check, result):
        for row in check.rows([sys.executable, "-u", "-c", code]):
            result.add(row)
    return gpu_check.Stage(name, 300, "a stage of this test", run)


def time_is_over_with(path):
    """For timers, time is over when there is something in this file."""

    class Timer(threading.Thread):
        def __init__(self, _, function):
            super().__init__(daemon=True)
            self.function, self.cancelled = function, threading.Event()

        def run(self):
            while not self.cancelled.wait(0.1):
                if path.exists() and path.read_text():
                    self.function()
                    return

        def cancel(self):
            self.cancelled.set()
    return unittest.mock.patch.object(gpu_check.threading, "Timer", Timer)


class Runs(unittest.TestCase):
    """Runs the program in a folder of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = Path(folder.name)
        for name, value in (("cublas_folders", []), ("gpu_name", "")):  # not of this machine
            patch = unittest.mock.patch.object(gpu_check, name, return_value=value)
            patch.start()
            self.addCleanup(patch.stop)

    def run_main(self, *stages, arguments=()):
        """Exit code, output and the results by stage."""
        output = io.StringIO()
        handler = signal.getsignal(signal.SIGTERM)
        with unittest.mock.patch.object(sys, "argv", ["gpu_check", "--out", str(self.out), *arguments]), \
                contextlib.redirect_stdout(output):
            code = gpu_check.main(stages)
        signal.signal(signal.SIGTERM, handler)
        return code, output.getvalue(), {path.stem: json.loads(path.read_text()) for path in self.out.glob("*.json")}


class Stages(Runs):
    def test_passes(self):
        code, output, results = self.run_main(fake("one", "print('{\"a\": 1}'); print('no JSON'); print('{\"a\": 2}')"))
        self.assertEqual(code, 0)
        self.assertEqual(results["one"]["status"], "passed")
        self.assertEqual(results["one"]["rows"], [{"a": 1}, {"a": 2}])
        self.assertEqual(len(results["one"]["commands"]), 1)
        self.assertRegex(output, "one +passed")

    def test_failure_names_code_and_message_and_later_stages_run(self):
        code, output, results = self.run_main(fake("bad", "import sys; sys.exit('no such kernel')"), fake("good", "pass"))
        self.assertEqual(code, 1)
        self.assertEqual(results["bad"]["status"], "failed")
        self.assertIn("exit code 1: no such kernel", results["bad"]["reason"])
        self.assertEqual(results["good"]["status"], "passed")
        self.assertIn("no such kernel", output)

    def test_time_limit_ends_the_command_and_its_children_and_keeps_rows(self):
        child = self.out / "child"
        program = (f"import subprocess, time; print('{{\"a\": 1}}'); p = subprocess.Popen(['sleep', '600']); "
                   f"open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(600)")
        with time_is_over_with(child):
            code, _, results = self.run_main(fake("slow", program))
        self.assertEqual(code, 1)
        self.assertIn("not done after", results["slow"]["reason"])
        self.assertEqual(results["slow"]["rows"], [{"a": 1}])
        for _ in range(600):  # until the system has buried it
            state = Path(f"/proc/{child.read_text()}/stat")
            if not state.exists() or state.read_text().split()[2] == "Z":
                break
            time.sleep(0.1)
        else:
            self.fail("a child of the command lives on")

    def test_budget_is_for_all_stages(self):
        code, _, results = self.run_main(fake("first", "import time; time.sleep(600)"), fake("second", "pass"),
                                         arguments=["--budget", "3"])
        self.assertEqual(code, 1)
        self.assertRegex(results["first"]["reason"], "not done after|no time left")
        self.assertEqual(results["second"]["reason"], "no time left")

    def test_stage_may_use_what_earlier_ones_left(self):
        limits = []

        def run(check, result):
            limits.append(round(check.deadline - time.monotonic()))
        self.run_main(gpu_check.Stage("first", 30, "", run), gpu_check.Stage("second", 10, "", run))
        self.assertEqual(limits, [30, 40])

    def test_the_stages_fit_the_time(self):
        self.assertLessEqual(sum(stage.limit_s for stage in gpu_check.STAGES if stage.name != "build"), 530)

    def test_stage_that_cannot_run_is_skipped(self):
        def run(check, result):
            raise gpu_check.Skipped("no such tool")
        code, _, results = self.run_main(gpu_check.Stage("skips", 9, "", run))
        self.assertEqual((code, results["skips"]["status"], results["skips"]["reason"]), (0, "skipped", "no such tool"))

    def test_unexpected_output_fails_the_stage_alone(self):
        def run(check, result):
            result.add(next(check.rows([sys.executable, "-c", "print('{}')"]))["missing"])
        code, _, results = self.run_main(gpu_check.Stage("odd", 9, "", run), fake("next", "pass"))
        self.assertEqual((code, results["odd"]["reason"], results["next"]["status"]), (1, "KeyError: 'missing'", "passed"))

    def test_sampling_goes_on_after_a_model_that_fails(self):
        program = self.out / "program"
        program.write_text("#!/bin/sh\ncase $* in *cifar10*) echo no memory >&2; exit 1 ;; esac\necho '{\"name\": \"drawn\"}'\n")
        program.chmod(0o755)
        with unittest.mock.patch.object(gpu_check.Check, "program", lambda check, name: program):
            code, output, results = self.run_main(gpu_check.Stage("sampling", 9, "", gpu_check.sampling_stage))
        self.assertEqual(code, 1)
        self.assertEqual([row["name"] for row in results["sampling"]["rows"]], ["cifar10/cifar10-59m-strided", "drawn"])
        self.assertRegex(output, "sampling: cifar10/cifar10-59m-strided +failed +program: exit code 1: no memory\n")

    def sanitize(self, script):
        """Runs the stage with this script for compute-sanitizer; $2 is its tool."""
        program = self.out / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        with unittest.mock.patch.object(gpu_check.Check, "program", lambda check, name: program), \
                unittest.mock.patch.object(gpu_check, "tool", lambda name: program):
            code, _, results = self.run_main(gpu_check.Stage("sanitizer", 300, "", gpu_check.sanitizer_stage))
        return code, results["sanitizer"]

    def test_sanitizers_see_the_blocks_of_tensors(self):
        code, result = self.sanitize("[ $LACUNA_NO_MEMORY_CACHE = 1 ] && echo no errors")
        self.assertEqual(code, 0, result)
        self.assertEqual({row["tool"] for row in result["rows"][:2]}, {"memcheck", "racecheck"})
        self.assertEqual([row["summary"] for row in result["rows"]], [["no errors"]] * 6)

    def test_both_sanitizers_must_have_been_in_time(self):
        hangs = self.out / "hangs"
        with time_is_over_with(hangs):
            code, result = self.sanitize(f"[ $2 = memcheck ] || {{ echo yes > {hangs}; exec sleep 600; }}")
        self.assertEqual((code, result["reason"]), (1, "no test was done in time by racecheck"))
        self.assertTrue(result["rows"][0]["passed"])

    def test_a_build_that_cannot_be_made_names_the_way_out(self):
        with unittest.mock.patch.object(gpu_check, "find_build", lambda given: None), \
                unittest.mock.patch.object(gpu_check, "gpu_name", lambda: "NVIDIA H200"), \
                unittest.mock.patch.dict(os.environ, PATH=str(self.out)):  # where cmake is not
            code, output, _ = self.run_main(gpu_check.STAGES[0])
        self.assertEqual(code, 1)
        self.assertRegex(output, "scripts/gpu_bundle packs elsewhere needs neither nvcc nor libraries: cmake: No such file")

    def test_asks_for_the_gpu_that_programs_see_first(self):
        for visible, asked in ({}, "0"), ({"CUDA_VISIBLE_DEVICES": "3,1"}, "3"), ({"CUDA_VISIBLE_DEVICES": "GPU-ab"}, "GPU-ab"):
            with unittest.mock.patch.object(gpu_check, "output_of", return_value="9.0") as output_of, \
                    unittest.mock.patch.dict(os.environ, visible):
                if not visible:
                    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
                self.assertEqual(gpu_check.architecture(), "90a-real")
            self.assertEqual(output_of.call_args.args[0][-2:], ["-i", asked])

    def run_in_process(self, sent):
        """Sends a signal when the stage has its first row; returns its result then and at the end."""
        program = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import gpu_check_test as t; "
                   f"sys.argv = ['gpu_check', '--out', {str(self.out)!r}]; "
                   "sys.exit(t.gpu_check.main([t.fake('long', \"print('{}'); import time; time.sleep(600)\")]))")
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
        result = self.out / "long.json"
        while not result.exists() or not json.loads(result.read_text())["rows"]:
            self.assertIsNone(process.poll())
            time.sleep(0.1)
        before = json.loads(result.read_text())
        process.send_signal(sent)
        return before, process.wait(), json.loads(result.read_text())

    def test_results_are_there_when_killed(self):
        before, _, after = self.run_in_process(signal.SIGKILL)
        self.assertEqual(before["status"], "running")
        self.assertEqual(after["rows"], [{}])
        self.assertEqual(after["status"], "running")

    def test_interrupted_run_says_so(self):
        _, code, after = self.run_in_process(signal.SIGTERM)
        self.assertEqual((code, after["status"], after["reason"]), (1, "failed", "interrupted"))

    def test_no_build_is_the_reason_of_every_stage_that_needs_one(self):
        with unittest.mock.patch.object(gpu_check, "find_build", lambda given: None):
            code, _, results = self.run_main(*gpu_check.STAGES)
        self.assertEqual(code, 1)
        self.assertEqual(results["build"]["reason"], "nvidia-smi names no GPU to build for")
        for stage in ("device", "tests", "kernels", "training", "text", "sampling"):
            self.assertIn("there is no build with CUDA", results[stage]["reason"])

    def test_usage(self):
        for arguments in (["--stage", "nothing"], ["--build", str(self.out)], ["--budget", "long"]):
            with self.assertRaises(SystemExit) as exit, contextlib.redirect_stderr(io.StringIO()):
                self.run_main(*gpu_check.STAGES, arguments=arguments)
            self.assertEqual(exit.exception.code, 2)


BINARIES = Path(os.environ.get("LACUNA_BINARY_DIR", "/nonexistent"))


@unittest.skipUnless((BINARIES / "tests/gpu_benchmark_emulated").exists() and (BINARIES / "bin/train_step_benchmark").exists(),
                     "needs the benchmarks of a build, one of them emulated")
class StandIns(Runs):
    """The stages themselves: kernels and tests emulated, small models on the CPU in place of the paper's."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.build = Path(folder.name)
        self.program("bin/gpu_benchmark", f"exec '{BINARIES}/tests/gpu_benchmark_emulated' --small \"$@\"")
        self.program("bin/enwik8", "[ $1 = --version ] && echo stand-in || echo 'test: 2.9000 bits per byte over 9 bytes'")
        self.program("bin/train_step_benchmark", f"""
            preset=${{@: -1}}
            for argument in "${{@:1:$#-1}}"; do
              case $argument in
                --device=cuda) arguments+=(--device=cpu) ;;
                --dtype=*) arguments+=(--dtype=f32) ;;
                --seconds=*) arguments+=(--seconds=0) ;;
                --runs=*) arguments+=(--runs=2) ;;
                *) arguments+=("$argument") ;;
              esac
            done
            '{BINARIES}/bin/train_step_benchmark' "${{arguments[@]}}" enwik8/laptop | sed "s,enwik8/laptop,$preset," """)
        self.program("tests/ops_gpu_test", "echo '[doctest] Status: SUCCESS!'")

    def program(self, name, script):
        path = self.build / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\nset -eo pipefail\n{script}\n")
        path.chmod(0o755)

    def run_stages(self, *names):
        return self.run_main(*gpu_check.STAGES,
                             arguments=["--build", str(self.build), *(word for name in names for word in ("--stage", name))])

    def test_device_tests_and_kernels(self):
        code, output, results = self.run_stages("device", "tests", "kernels")
        self.assertEqual(code, 0, output)
        self.assertEqual(results["device"]["machine"]["device"], "emulated GPU")
        self.assertEqual([row["passed"] for row in results["tests"]["rows"]], [True])
        goals = {f"{name}/{which}" for name in gpu_results.KERNEL_GOALS for which in ("forward", "backward")}
        self.assertEqual((goals | set(gpu_results.TRAFFIC_GOALS)) - {row["name"] for row in results["kernels"]["rows"]}, set())
        self.assertRegex(output, r"attention/dense-width-64/forward .* 270 +420.* of the roofline, mma\n")
        for row in results["kernels"]["rows"]:
            forward = row["name"].startswith("attention/") and row["name"].endswith("/forward")
            self.assertEqual(row.get("kernel"), "mma" if forward else None)  # so small that wgmma does not pay

    def test_training_text_and_sampling(self):
        with unittest.mock.patch.dict(gpu_check.PEAK_TFLOPS, {"emulated GPU": 100}):
            code, output, results = self.run_stages("device", "training", "text", "sampling")
        self.assertEqual(code, 0, output)
        self.assertEqual([row["name"] for row in results["training"]["rows"]], list(gpu_results.TRAINING))
        for row in results["training"]["rows"]:
            self.assertEqual(row["tokens_per_s"], 1e3 * row["tokens"] / row["median_ms"])
            self.assertEqual(row["mfu"], row["model_tflops"] / 100)
            self.assertIsNone(row["device_memory_bytes"])  # of the CPU
        self.assertEqual([row["preset"] for row in results["training"]["table_2"]], list(gpu_results.TABLE_2))
        self.assertEqual([row["positions"] for row in results["sampling"]["rows"]], [1, 1])  # no time for more
        self.assertRegex(output, r"sampling: cifar10/cifar10-59m-strided .* by 1 of 256 positions")

    def test_pytorch(self):
        rival, hangs = self.build / "rival.py", self.build / "hangs"
        rival.write_text(f"""
import json, sys, time
other = "cifar10-59m-strided" in " ".join(sys.argv)  # another function
print(json.dumps({{"pytorch": "2", "attention_kernel": "none", "logits_difference": 0.7 if other else 0.01}}))
if "natural" in sys.argv:  # takes too long
    open({str(hangs)!r}, "w").write("yes")
    time.sleep(600)
print(json.dumps({{"median_ms": 1e9}}))
""")
        self.program("python", f"if [ \"$1\" = -c ]; then echo 2; else exec '{sys.executable}' \"$@\"; fi")
        with unittest.mock.patch.dict(os.environ, PYTHON=str(self.build / "python")), \
                unittest.mock.patch.object(gpu_check, "RIVAL", rival), time_is_over_with(hangs):
            code, output, results = self.run_stages("training", "pytorch")
        rivals = [name for name, model in gpu_results.TRAINING.items() if model.rival]
        rows = results["pytorch"]["rows"]
        self.assertEqual([(row["name"], row["way"]) for row in rows],
                         [(name, way) for way in ("permuted", "natural") for name in rivals])
        self.assertEqual(["ours_is_faster" in row for row in rows], [False, True, True, True] + [False] * 4)
        self.assertIn("not done after", rows[4]["failed"])
        self.assertEqual(code, 1)  # by logits, not by time
        self.assertRegex(results["pytorch"]["reason"], "^cifar10/cifar10-59m-strided permuted: another function: [^;]*$")


class Batches(unittest.TestCase):
    def test_fewer_sequences_where_memory_is_smaller(self):
        model = gpu_check.TRAINING["imagenet64/imagenet64-152m"]
        self.assertEqual(gpu_check.batch_for(model, 141 << 30), 12)
        self.assertEqual(gpu_check.batch_for(model, 80 << 30), 7)
        self.assertEqual(gpu_check.batch_for(model, 8 << 30), 1)


class Table(unittest.TestCase):
    STAGES = ["device", "kernels", "training", "pytorch"]

    def lines(self, **results):
        with tempfile.TemporaryDirectory() as folder:
            for stage, result in results.items():
                (Path(folder) / f"{stage}.json").write_text(json.dumps(result))
            return "\n".join(gpu_check.summary_lines(Path(folder), self.STAGES))

    def test_judges_against_the_goals(self):
        def kernel(which, tflops):
            return {"name": f"attention/dense-width-128/{which}", "us": 9.0, "roofline": 0.5, "useful_tflops": tflops,
                    "gb_per_s": 1.0, "useful_flops": 1.0}
        text = self.lines(device={"status": "passed", "machine": {"device": "NVIDIA H200", "copy_gb_per_s": 4300}},
                          kernels={"status": "passed", "rows": [kernel("forward", 560), kernel("backward", 249)]})
        self.assertRegex(text, r"dense-width-128/forward +560 TF +300 +560 +reaches the target  9 us, 50% of the roofline")
        self.assertRegex(text, r"dense-width-128/backward +249 TF +250 +450 +BELOW")
        self.assertIn("training not run", text)
        self.assertNotIn("another GPU", text)

    def test_says_when_the_goals_are_of_another_gpu(self):
        self.assertIn("another GPU", self.lines(device={"machine": {"device": "NVIDIA H100 80GB HBM3"}}))

    def test_fastest_rival_counts(self):
        row = {"name": "enwik8/enwik8-95m-fixed", "pytorch": "2.11"}
        text = self.lines(pytorch={"rows": [{**row, "attention_kernel": "slow", "ours_is_faster": 3.0},
                                            {**row, "attention_kernel": "quick", "ours_is_faster": 1.5},
                                            {**row, "way": "absent", "failed": "out of memory"}]})
        self.assertRegex(text, r"against PyTorch: enwik8/enwik8-95m-fixed +1.5 x +1.25 +1.8 +accepted +2.11, quick")
        self.assertNotIn("slow", text)

    def test_says_why_there_is_no_number(self):
        check = gpu_check.Check(None, Path(), 60)
        self.addCleanup(check.scratch.rmdir)
        with self.assertRaises(gpu_check.Failed) as failure:
            list(check.lines([sys.executable, "-c", "import sys; sys.exit('no driver\\nat all')", *30 * ["--option=value"]]))
        text = self.lines(training={"rows": [{"name": "enwik8/laptop", "failed": str(failure.exception)}]})
        self.assertRegex(text, r"\nenwik8/laptop +failed +\S+: exit code 1: no driver$")

    def test_memory_of_tensors_and_of_the_gpu(self):
        row = {"name": "enwik8/enwik8-95m-dense", "tokens_per_s": 9e4, "peak_tensor_bytes": 50 << 30, "recompute": False,
               "device_memory_bytes": 60 << 30, "losses_nats": [5.5, 2.5]}
        text = self.lines(training={"rows": [row, {**row, "device_memory_bytes": None}]})
        self.assertIn("50.0 GiB (GPU 60.0), loss", text)
        self.assertIn("50.0 GiB, loss", text)

    def test_broken_result_is_no_result(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "device.json").write_text("{")
            self.assertIn("device not run", "\n".join(gpu_check.summary_lines(Path(folder), self.STAGES)))


class Bundle(unittest.TestCase):
    def refusal(self, cache):
        with tempfile.TemporaryDirectory() as folder:
            if cache is not None:
                (Path(folder) / "CMakeCache.txt").write_text(cache)
            with self.assertRaises(gpu_bundle.Failure) as failure:
                gpu_bundle.check_build(Path(folder))
            return str(failure.exception)

    def test_refuses_what_is_no_build_with_cuda(self):
        self.assertIn("is no build folder", self.refusal(None))
        self.assertIn("LACUNA_CUDA=OFF", self.refusal("LACUNA_CUDA:STRING=OFF\nLACUNA_NVCC_WORKS:INTERNAL=ON\n"))
        self.assertIn("for the CPU alone", self.refusal("LACUNA_CUDA:STRING=AUTO\n"))
        self.assertIn("LACUNA_TESTS=OFF", self.refusal("LACUNA_CUDA:STRING=ON\nLACUNA_NVCC_WORKS:INTERNAL=ON\nLACUNA_TESTS:BOOL=OFF\n"))

    def test_archive_has_what_was_packed_unless_it_is_too_large(self):
        def pack(build, folder):
            (folder / "bin").mkdir(parents=True)
            (folder / "bin/program").write_text("of a build")
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), \
                contextlib.redirect_stderr(io.StringIO()) as errors, \
                unittest.mock.patch.multiple(gpu_bundle, pack=pack, run=unittest.mock.DEFAULT, check_build=lambda build: {
                    "CMAKE_CUDA_ARCHITECTURES": "80-real;90a-real"}):
            out = Path(folder) / "bundle.tar.xz"
            with unittest.mock.patch.object(sys, "argv", ["gpu_bundle", "--out", str(out)]):
                self.assertEqual(gpu_bundle.main(), 0)
                with tarfile.open(out) as archive:
                    self.assertEqual(archive.extractfile("lacuna-gpu/bin/program").read(), b"of a build")
                with unittest.mock.patch.object(gpu_bundle, "LIMIT", 9):
                    self.assertEqual(gpu_bundle.main(), 1)
            self.assertFalse(out.exists())
        self.assertIn("build for fewer architectures than 80-real, 90a-real", errors.getvalue())

    def test_packs_no_c_library_and_nothing_of_cuda(self):
        for name in ("libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "libpthread.so.0"):
            self.assertTrue(gpu_bundle.C_LIBRARY.match(name), name)
        for name in ("libcrypto.so.3", "libdnnl.so.2", "libstdc++.so.6", "libmagic.so.1"):
            self.assertFalse(gpu_bundle.C_LIBRARY.match(name) or gpu_bundle.CUDA.match(name), name)
        self.assertTrue(gpu_bundle.CUDA.match("libcublasLt.so.13"))


if __name__ == "__main__":
    unittest.main()
