"""scripts/get_data, with small sets and a server of our own: resuming, checks, and what it says when it cannot."""

import contextlib
import hashlib
import http.server
import importlib.machinery
import importlib.util
import io
import lzma
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import unittest
import unittest.mock
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "get_data"

sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("get_data", str(SCRIPT))
get_data = importlib.util.module_from_spec(importlib.util.spec_from_loader("get_data", loader))
loader.exec_module(get_data)

IMAGES = {"one.bin": bytes(3073 * 5), "two.bin": os.urandom(3072).join([b"\x09", b"\x00"])}
TEXT = os.urandom(3_000_000)


def md5(content):
    return "md5:" + hashlib.md5(content).hexdigest()


def tar_of(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo("cifar-10-batches-bin/" + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def zip_of(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


class Server:
    """Serves the files of a dictionary, with ranges; `breaks` says after how many bytes the next answers end early."""

    def __init__(self, files):
        self.files, self.breaks, self.ranges = files, [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                content = outer.files.get(self.path.lstrip("/"))
                if content is None:
                    return self.send_error(404)
                wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
                begin = int(wanted[1]) if wanted else 0
                outer.ranges.append(begin)
                if wanted and begin >= len(content):
                    return self.send_error(416)
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - begin))
                self.end_headers()
                end = begin + outer.breaks.pop(0) if outer.breaks else len(content)
                self.wfile.write(content[begin:end])

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class GetDataTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name) / "a folder"
        self.source = Path(temporary.name) / "source"
        self.source.mkdir()
        self.server = Server({"images.tar.gz": tar_of(IMAGES), "text.zip": zip_of({"text": TEXT})})
        self.addCleanup(self.server.close)
        files = [get_data.DataFile(name, len(IMAGES[name]), check=get_data.check_labels) for name in IMAGES]
        sets = {
            "cifar10": get_data.DataSet("http://official", "images.tar.gz",
                                        md5(self.server.files["images.tar.gz"]), files),
            "enwik8": get_data.DataSet("http://official", "text.zip", None,
                                       [get_data.DataFile("text", len(TEXT), md5(TEXT))]),
        }
        for patch in (unittest.mock.patch.object(get_data, "SETS", sets),
                      unittest.mock.patch.dict(os.environ, {"LACUNA_DATA_URL": self.server.url, "no_proxy": "*"})):
            patch.start()
            self.addCleanup(patch.stop)

    def call(self, *arguments):
        """Exit code and all that was printed."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), \
                unittest.mock.patch.object(sys, "argv", ["get_data", *map(str, arguments)]):
            return get_data.main(), printed.getvalue()

    def expect(self, files):
        """The folder holds these files and nothing else."""
        self.assertEqual({path.name: path.read_bytes() for path in self.folder.iterdir()}, files)

    def test_fetches_and_unpacks_a_tar(self):
        code, printed = self.call("cifar10", self.folder)
        self.assertEqual(code, 0, printed)
        self.assertIn(f"use it with --data '{self.folder}'", printed)
        self.expect(IMAGES)

    def test_fetches_and_unpacks_a_zip(self):
        self.assertEqual(self.call("enwik8", self.folder)[0], 0)
        self.expect({"text": TEXT})

    def test_a_complete_set_is_not_fetched_again(self):
        self.call("enwik8", self.folder)
        code, printed = self.call("enwik8", self.folder)
        self.assertEqual(code, 0)
        self.assertIn("already there", printed)
        self.assertEqual(len(self.server.ranges), 1)

    def test_a_damaged_set_is_fetched_again(self):
        self.call("cifar10", self.folder)
        (self.folder / "one.bin").write_bytes(b"short")
        self.assertEqual(self.call("cifar10", self.folder)[0], 0)
        self.expect(IMAGES)

    def test_goes_on_when_the_connection_breaks(self):
        self.server.breaks = [1_500_000, 1_000_000]
        code, printed = self.call("enwik8", self.folder)
        self.assertEqual(code, 0, printed)
        self.assertEqual(self.server.ranges, [0, 1_500_000, 2_500_000])
        self.expect({"text": TEXT})

    def test_keeps_what_it_has_and_resumes_when_called_again(self):
        self.server.breaks = [1_500_000, 0]
        code, printed = self.call("enwik8", self.folder)
        self.assertEqual(code, 1)
        self.assertIn("the connection broke after 1500000 bytes, which are kept: repeat the command to go on", printed)
        self.expect({"text.zip.part": self.server.files["text.zip"][:1_500_000]})
        self.assertEqual(self.call("enwik8", self.folder)[0], 0)
        self.assertEqual(self.server.ranges, [0, 1_500_000, 1_500_000])
        self.expect({"text": TEXT})

    def test_resumes_a_download_that_was_complete(self):
        self.folder.mkdir()
        (self.folder / "images.tar.gz.part").write_bytes(self.server.files["images.tar.gz"])
        self.assertEqual(self.call("cifar10", self.folder)[0], 0)
        self.expect(IMAGES)

    def test_removes_a_download_with_the_wrong_digest(self):
        self.server.files["images.tar.gz"] = tar_of({**IMAGES, "more": b"x"})
        code, printed = self.call("cifar10", self.folder)
        self.assertEqual(code, 1)
        self.assertIn("images.tar.gz: md5 must be ", printed)
        self.assertIn("the damaged download is removed: repeat the command", printed)
        self.expect({})

    def test_unpacks_nothing_wrong(self):
        for content, message in ((zip_of({"text": TEXT[:-1]}), "text: must be 3000000 bytes, got 2999999"),
                                 (zip_of({"text": TEXT + b"x"}), "text: must be 3000000 bytes, got 3000001"),
                                 (zip_of({"text": b"x" + TEXT[1:]}), "text: md5 must be "),
                                 (zip_of({"other": TEXT}), "text.zip: there is no text in it"),
                                 (b"not a zip", "text.zip: damaged: ")):
            self.server.files["text.zip"] = content
            code, printed = self.call("enwik8", self.folder)
            self.assertEqual(code, 1)
            self.assertIn("get_data: enwik8: " + message, printed)
            self.expect({})

    def test_says_what_the_server_answers(self):
        del self.server.files["text.zip"]
        code, printed = self.call("enwik8", self.folder)
        self.assertEqual(code, 1)
        self.assertIn("the server answers 404", printed)
        self.assertIn("By hand: fetch http://official/text.zip", printed)

    def test_takes_files_from_a_folder(self):
        (self.source / "one.bin").write_bytes(IMAGES["one.bin"])
        (self.source / "two.bin.xz").write_bytes(lzma.compress(IMAGES["two.bin"]))
        self.assertEqual(self.call("cifar10", self.folder, "--from", self.source)[0], 0)
        self.expect(IMAGES)
        self.assertEqual(self.server.ranges, [])

    def test_takes_an_archive_from_a_folder_and_leaves_it_there(self):
        (self.source / "images.tar.gz").write_bytes(self.server.files["images.tar.gz"])
        self.assertEqual(self.call("cifar10", self.folder, "--from", self.source)[0], 0)
        self.expect(IMAGES)
        self.assertTrue((self.source / "images.tar.gz").exists())

    def test_refuses_what_is_wrong_in_a_folder(self):
        one, two = self.source / "one.bin", self.source / "two.bin.xz"
        for prepare, message in ((lambda: None, "has neither images.tar.gz nor one.bin nor one.bin.xz"),
                                 (lambda: one.write_bytes(b"x"), "one.bin: must be 15365 bytes, got 1"),
                                 (lambda: one.write_bytes(b"\x0a" * 15365), "one.bin: has a label 10, must be at most"),
                                 (lambda: (one.unlink(), (self.source / "one.bin.xz").write_bytes(b"x")),
                                  "one.bin.xz: damaged: ")):
            prepare()
            code, printed = self.call("cifar10", self.folder, "--from", self.source)
            self.assertEqual(code, 1)
            self.assertIn(message, printed)
            self.expect({})
        self.assertFalse(two.exists())
        code, printed = self.call("cifar10", self.folder, "--from", self.source / "no")
        self.assertEqual(code, 1)
        self.assertIn("no such folder: ", printed)

    def test_the_sample_needs_no_network(self):
        code, printed = self.call("sample", self.folder)
        self.assertEqual(code, 0, printed)
        self.expect({"wikipedia_sample.txt": (ROOT / "data" / "sample" / "wikipedia_sample.txt").read_bytes()})


class CommandLineTest(unittest.TestCase):
    def run_script(self, *arguments, **environment):
        return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True,
                              env={**os.environ, "no_proxy": "*", **environment})

    def test_help(self):
        done = self.run_script("--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("usage: scripts/get_data cifar10|enwik8|sample [FOLDER] [--from DIR]", done.stdout)

    def test_wrong_usage(self):
        for arguments in ([], ["mnist"], ["enwik8", "a", "b"], ["enwik8", "--fast"]):
            done = self.run_script(*arguments)
            self.assertEqual(done.returncode, 2)
            self.assertIn("usage: ", done.stderr)

    def test_no_network(self):
        with tempfile.TemporaryDirectory() as folder:
            nobody = Server({})
            nobody.close()  # its port now refuses
            for name in ("cifar10", "enwik8"):
                done = self.run_script(name, folder, LACUNA_DATA_URL=nobody.url)
                self.assertEqual(done.returncode, 1)
                self.assertIn(f"{name}: cannot reach {nobody.url[7:]}: ", done.stderr)
                self.assertIn("By hand: fetch http", done.stderr)


if __name__ == "__main__":
    unittest.main()
