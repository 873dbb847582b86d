"""Any machine: no call that one system alone has, no file that is read in whatever letters a machine has by default."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "pointseg").rglob("*.py")) + sorted((ROOT / "notebooks").glob("*.py"))
POSIX = re.compile(r"""
    \b(import|from)\s+(fcntl|resource|pwd|grp|termios|tty|pty|syslog|posix|crypt|readline)\b
    | \bos\.(fork|forkpty|kill|killpg|setsid|getpgid|getuid|geteuid|getgid|setuid|chown|mkfifo|mknod|link|symlink
             |statvfs|uname|getloadavg|sched_\w+|nice|wait|waitpid|pread|pwrite|sync|sysconf|EX_\w+)\b
    | \b(symlink_to|hardlink_to|link_to)\(
    | \bsignal\.(SIGKILL|SIGHUP|SIGALRM|SIGUSR[12]|SIGCHLD|SIGPIPE|alarm|setitimer)\b
    | get_context\(\s*["'](fork|forkserver)["'] | set_start_method | shell\s*=\s*True
    | ["']/(tmp|proc|dev|usr|bin|etc|var)\b
    """, re.VERBOSE)
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
BY_NAME_ALONE = {"test_faults", "test_each_of_them_is_seen", "test_batches_of_other_processes_are_the_same"}
TWINS = {("report/table.py", "import resource")}  # under a `try`, with what Windows has instead


def code_of(text: str) -> str:
    """Without comments and docstrings, which may name what they like."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def posix_calls(text: str) -> list[str]:
    return [m.group().strip() for m in POSIX.finditer(code_of(text))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_call_of_one_system_alone(path):
    found = {(path.relative_to(ROOT / "pointseg").as_posix() if "pointseg" in path.parts else path.name, call)
             for call in posix_calls(path.read_text(encoding="utf-8"))}
    assert found <= TWINS


@pytest.mark.parametrize("line", ["import fcntl", "from resource import getrusage", "os.fork()", "os.kill(p, 9)",
                                  "p.symlink_to(q)", "os.symlink(a, b)", "signal.SIGKILL", "x = '/dev/shm'",
                                  "multiprocessing.get_context('fork')", "os.statvfs('x')", "run('ls', shell=True)"])
def test_each_of_them_is_seen(line):
    assert posix_calls(f'"""It says os.fork."""\n{line}  # or os.kill')


@pytest.mark.parametrize("path", TESTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_tests_that_need_posix_are_marked(path):
    """Also where a function of their file does, which they name or have as a fixture."""
    functions = {n.name: n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}
    names = {f: {x.id for x in ast.walk(n) if isinstance(x, ast.Name)} | {a.arg for a in n.args.args}
             for f, n in functions.items()}
    needs = {f for f, node in functions.items() if posix_calls(ast.unparse(node))}
    needs |= {f for f in functions if names[f] & needs}
    assert not {f for f in needs - BY_NAME_ALONE if f.startswith("test_") and not any(
        re.search("posix|platform|exists", ast.unparse(d)) for d in functions[f].decorator_list)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_text_is_read_and_written_as_utf_8(path):
    """Not in a machine's own letters, cp1252 say."""
    mute = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                "open", "read_text", "write_text", "NamedTemporaryFile"):
            said = ast.unparse(node)
            if not re.search(r"""encoding|['"][rwa]\+?b\+?['"]|(os|Image)\.open""", said):
                mute.append(said)
    assert not mute
