"""Attempts to get out of the sandboxes, or to bring down who hosts them. None may succeed."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.tool import ToolError
from tests.tools.children import children_of
from tests.tools.corpus import FolderCorpus, NoAside, scope_of
from tools import python, table_query
from tools.python import Python
from tools.table_query import TableQuery

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(python, "TIMEOUT_S", 2.0)
    corpus = FolderCorpus(tmp_path / "corpus")
    corpus.add("a.csv", {"": {"n": [1]}})
    tool = Python(scope_of(corpus, tmp_path))

    def call(code):
        tables = ["d1_t1"] if "d1_t1" in code else []
        return asyncio.run(tool.call({"code": code, "tables": tables}, NoAside())).text

    return call


@pytest.mark.attack("imports in a program")
@pytest.mark.parametrize(
    "module",
    ["socket", "subprocess", "ctypes", "sys.modules", "importlib", "multiprocessing", "shutil",
     "urllib.request", "threading", "signal", "gc", "inspect", "duckdb", "pydantic_monty", "tools"],
)  # fmt: skip
def test_a_module_is_not_there_when_imported(run, module):
    with pytest.raises(ToolError, match="ModuleNotFoundError|ImportError|AttributeError"):
        run(f"import {module}\n{module}")


@pytest.mark.attack("looking into the interpreter from a program")
@pytest.mark.parametrize(
    "code",
    [
        "().__class__.__bases__[0].__subclasses__()",
        "(lambda: 0).__globals__",
        "(lambda: 0).__code__",
        "d1_t1.__class__.__mro__",
        "type(d1_t1).__subclasses__()",
        "__builtins__['open']",
        "__import__('os').system('id')",
        "__loader__",
        "getattr(print, '__self__').open",
        "'{0.__class__.__mro__}'.format(1)",
        "try:\n    1/0\nexcept Exception as e:\n    e.__traceback__.tb_frame",
        "globals()['__builtins__'].open",
        "breakpoint()",
        "input()",
    ],
)
def test_the_interpreter_is_closed_when_looked_into(run, code):
    with pytest.raises(ToolError, match="Error"):
        run(code)


@pytest.mark.attack("files, processes and the environment from a program")
@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd').read()",
        "open('{file}').read()",
        "open('{link}').read()",
        "open('../../../../etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "open('/tmp/written', 'w').write('x')",
        "eval(\"open('/etc/passwd').read()\")",
        "exec(\"print(open('/etc/passwd').read())\")",
        "from pathlib import Path\nPath('/etc/passwd').read_text()",
        "from pathlib import Path\nlist(Path('/').iterdir())",
        "from pathlib import Path\nPath('{file}').unlink()",
        "from pathlib import Path\nPath('/tmp/l').symlink_to('/etc/passwd')",
        "import os\nos.listdir('/')",
        "import os\nos.environ['PATH']",
        "import os\nos.getenv('PATH')",
        "import os\nos.system('id')",
        "import os\nos.fork()",
        "import os\nos.execv('/bin/sh', ['sh'])",
        "import os\nos.kill({pid}, 9)",
        "import os\nos.remove('{file}')",
    ],
)
def test_the_machine_is_out_of_reach_when_a_program_asks_for_it(run, tmp_path, code):
    file = tmp_path / "secret.txt"
    file.write_text("a secret")
    link = tmp_path / "link.txt"
    link.symlink_to(file)
    with pytest.raises(ToolError) as error:
        run(code.format(file=file, link=link, pid=os.getpid()))
    assert "Error" in str(error.value)
    assert "root:" not in str(error.value)
    assert file.read_text() == "a secret"


@pytest.mark.attack("endless or huge programs and results")
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "x = 'x' * 10**10",
        "10**10**8",
        "1 << 10**11",
        "[0] * 10**10",
        "x = []\nwhile True: x.append('y' * 1000000 + str(len(x)))",
        "x = 'x'\nwhile True: x += x",
        "def f(): return f()\nf()",
        "x = []\nx.append(x)\nwhile True: x = [x, x]",
        "eval('(' * 100000 + ')' * 100000)",
        "while True: print('x' * 1000)",
        "list(range(10**12))",
        "sum(range(10**13))",
        "import re\nre.match('(a+)+$', 'a' * 64 + 'b') or 1/0",
        "import json\njson.loads('[' * 1000000)",
        "bytes(10**11)",
        "'%1000000000000d' % 1",
        "f'{1:1000000000000}'",
        "import itertools\nlist(itertools.product(range(1000), repeat=10))",
    ],
)
def test_this_process_lives_on_when_a_program_uses_up_all(run, code):
    with pytest.raises(ToolError):
        run(code)
    assert run("d1_t1[0]['n']").startswith("result: 1")


@pytest.mark.attack("endless or huge programs and results")
@pytest.mark.parametrize(
    "code",
    ["x = []\nfor i in range(1000000): x = [x]\nx", "{i: 'y' * 1000 for i in range(100000)}"],
)
def test_a_bounded_text_comes_back_when_the_result_is_deep_or_large(run, code):
    assert len(run(code)) < 21_000


# -- The fence behind: what Python itself cannot do once it is confined ------------------------------

CONFINED = f"""
import os, socket, subprocess, sys, threading
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tools.confine import Amounts, call_nothing_outside, limit, see_only
limit(Amounts(memory_bytes=2**30, cpu_s=2))
if not see_only([Path(sys.argv[1])]) or not call_nothing_outside(processes=False):
    print("absent"); sys.exit()
def attempt():
    {{}}
try:
    print("result", attempt())
except (OSError, MemoryError, RuntimeError) as exc:
    print("refused", type(exc).__name__)
"""


def confined(code, path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", CONFINED.format(code), str(path)],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    if done.stdout == "absent\n":
        pytest.skip("this kernel has no Landlock or no seccomp")
    return done


@pytest.mark.attack("the second fence: files, sockets and processes")
@pytest.mark.parametrize(
    "code",
    [
        "return open('/etc/passwd').read()",
        "return open(sys.argv[1] + '.not').read()",
        "return os.listdir('/')",
        "return os.listdir(os.path.dirname(sys.argv[1]))",
        "return open(sys.argv[1], 'a').write('x')",
        "return open(sys.argv[1] + '.new', 'w')",
        "return os.symlink('/etc/passwd', sys.argv[1] + '.link')",
        "return os.remove(sys.argv[1])",
        "return os.rename(sys.argv[1], sys.argv[1] + '.moved')",
        "return socket.socket()",
        "return socket.socket(socket.AF_UNIX)",
        "return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "return os.fork()",
        "return subprocess.run(['/bin/true'])",
        "return os.execv('/bin/true', ['true'])",
        "return os.posix_spawn('/bin/true', ['true'], {})",
        "return os.kill(os.getppid(), 0)",
        "return len(bytearray(4 * 2**30))",
    ],
)
def test_it_is_refused_when_a_confined_process_tries(tmp_path, code):
    file = tmp_path / "table.parquet"
    file.write_text("rows")
    (tmp_path / "table.parquet.not").write_text("other rows")
    assert confined(code, file).stdout.startswith("refused")
    assert file.read_text() == "rows"


@pytest.mark.parametrize(
    "code",
    [
        "return open(sys.argv[1]).read()",
        "t = threading.Thread(target=print, args=('on',)); t.start(); return t.join()",
        "import sqlite3; return sqlite3.connect(':memory:').execute('select 1').fetchall()",
    ],
)
def test_it_works_when_a_confined_process_does_what_it_may(tmp_path, code):
    file = tmp_path / "table.parquet"
    file.write_text("rows")
    assert "result" in confined(code, file).stdout


@pytest.mark.attack("the second fence: files, sockets and processes")
def test_a_confined_process_ends_when_it_computes_without_end(tmp_path):
    file = tmp_path / "table.parquet"
    file.write_text("rows")
    assert confined("while True: pass", file).returncode < 0


@pytest.mark.parametrize(
    ("tool", "arguments", "name"),
    [
        (Python, {"code": "while True: pass"}, b"monty"),
        (TableQuery, {"sql": "select sum(i) from range(10000000000) t(i)"}, b"tools.table_child"),
    ],
)
def test_the_processes_of_a_tool_are_confined_when_they_work(
    tmp_path, monkeypatch, tool, arguments, name
):
    monkeypatch.setattr(python, "TIMEOUT_S", 3.0)
    monkeypatch.setattr(table_query, "TIMEOUT_S", 3.0)
    made = tool(scope_of(FolderCorpus(tmp_path), tmp_path))

    async def main():
        call = asyncio.create_task(made.call(arguments, NoAside()))
        await asyncio.sleep(2)
        found = [facts for facts in _descendants(os.getpid()) if name in facts[0]]
        with pytest.raises(ToolError):
            await call
        return found

    found = asyncio.run(main())
    assert found
    for _, status, limits, environment in found:
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        assert not re.search(r"Max address space +unlimited", limits)
        assert environment in {b"", b"TZ=UTC\x00"}


def _descendants(pid):
    """Return command line, status, limits and environment of all processes below one."""
    found = []
    for child in children_of(pid):
        folder = Path(f"/proc/{child}")
        found.append((
            (folder / "cmdline").read_bytes(),
            (folder / "status").read_text(),
            (folder / "limits").read_text(),
            (folder / "environ").read_bytes(),
        ))
        found += _descendants(child)
    return found
