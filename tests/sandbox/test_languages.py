"""Other languages: tests behind the solution, in one process; an early clean end is no pass."""

import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.sandbox import languages
from codegen2_jax.sandbox.programs import Limits, Program
from codegen2_jax.sandbox.runner import Sandbox
from codegen2_jax.sandbox.toolchain import java_class

PARTS = {
    "java": (
        "import java.util.*;\nclass Problem {{\n    public static long add(long a, long b) {{\n        {}\n    }}\n",
        "    public static void main(String[] args) {\n    assert(add(2L, 3L) == (5L));\n    }\n}\n",
    ),
    "javascript": (
        "function add(a, b) {{\n  {}\n}}\n",
        "const assert = require('node:assert');\nfunction test() {\n  let candidate = add;\n"
        "  assert.deepEqual(candidate(2, 3), 5);\n}\ntest();\n",
    ),
    "ruby": (
        "def add(a, b)\n  {}\nend\n",
        "require 'test/unit'\nclass TestAdd < Test::Unit::TestCase\n  def test_add\n    candidate = method(:add)\n"
        "    assert_equal(5, candidate.call(2, 3))\n  end\nend\n",
    ),
    "csharp": (
        "using System;\nusing System.Collections.Generic;\nusing System.Diagnostics;\nclass Problem {{\n"
        "    public static long Add(long a, long b) {{\n        {}\n    }}\n",
        "    public static void Main(string[] args) {\n    Debug.Assert(Add((2L), (3L)) == (5L));\n    }\n}\n",
    ),
}
BODIES = {
    "java": [
        ("return a + b;", "passed"), ("return a - b;", "failed"), ("return a +", "error"),
        ("System.exit(0); return 0;", "error"),
        ("Runtime.getRuntime().halt(0); return 0;", "error"), ("throw new RuntimeException();", "error"),
        ('System.out.println("\\n00000000000000000000000000000000 passed"); System.exit(0); return 0;', "error"),
        ('try { new ProcessBuilder("sleep", "9").start(); } catch (Exception e) { } return a + b;', "violation"),
    ],
    "javascript": [
        ("return a + b;", "passed"), ("return a - b;", "failed"), ("return a +", "error"),
        ("process.exit(0);", "error"), ("process.reallyExit(0);", "error"), ("throw new Error('x');", "error"),
        ("while (true) {}", "timeout"),
        ("require('assert').deepEqual = () => {}; return 0;", "failed"),
        ("process.emit('beforeExit'); return 0;", "failed"),
        ("require('child_process').execSync('sleep 9'); return 5;", "violation"),
        ("require('net').connect(80, '127.0.0.1'); return 5;", "violation"),
        ("for (const x = []; ;) x.push(new Array(1e6).fill(1));", "memory"),
        ("for (;;) console.log('x'.repeat(1000));", "output"),
    ],
    "ruby": [
        ("a + b", "passed"), ("a - b", "failed"), ("a + (", "error"), ("exit(0)", "error"),
        ("exit!(0)", "error"),
        ("raise 'x'", "failed"), ("loop {}", "timeout"), ("system('sleep 9'); 5", "violation"),
        ("fork; 5", "violation"),
    ],
    "csharp": [
        ("return a + b;", "passed"), ("return a - b;", "failed"), ("return a +", "error"),
        ("Environment.Exit(0); return 0;", "error"), ("throw new Exception();", "error"),
        ('Console.WriteLine("\\n00000000000000000000000000000000 passed"); Environment.Exit(0); return 0;', "error"),
        ("Trace.Listeners.Clear(); return 0;", "failed"),
        ("return 0; } class Debug { public static void Assert(bool b) { } } static long F() { return 0;", "failed"),
        ("Debug.WriteLine(a); return a + b;", "passed"),
        ("while (true) { }", "timeout"),
        ('new System.Net.Sockets.TcpClient("127.0.0.1", 80); return a + b;', "violation"),
        ("for (var x = new List<byte[]>(); ;) { x.Add(new byte[1000000]); x[0][0] = 1; }", "memory"),
        ("while (true) Console.WriteLine(new string('x', 1000));", "output"),
    ],
}  # fmt: skip
COMPILED = ("java", "csharp")  # within the limit


@pytest.mark.slow
@pytest.mark.parametrize("language", PARTS)
def test_labels(language, isolated):
    try:
        languages.find(language)
    except UserError as error:
        pytest.skip(str(error))
    head, tests = PARTS[language]
    bodies = BODIES[language]
    programs = [Program(body, head.format(body), tests, language=language, style="program") for body, _ in bodies]
    with Sandbox(2, Limits(cpu_seconds=4 if language in COMPILED else 1.5, memory_mib=128)) as sandbox:
        found = [(verdict.name, verdict.outcome) for verdict in sandbox.judge(programs)]
    assert found == bodies


CUT_OFF = {
    "javascript": ["function add(a, b) { return 0; }\nreturn;", "function add(a, b) { return 0; }\nif (1) return;",
                   "process.removeAllListeners(); process.on('uncaughtException', () => {}); const add = () => 0;",
                   "require('vm').Script.prototype.runInThisContext = () => 0; const add = () => 0;",
                   "require('fs').writeFileSync('tests.js', ''); const add = () => 0;",
                   "var require = () => ({ deepEqual() {} }); const add = () => 0;"],
    "ruby": ["def add(a, b)\n 0\nend\nreturn", "def add(a, b)\n 0\nend\n__END__",
             "def add(a, b)\n 0\nend\nFile.write('tests.rb', '')", "def eval(*) = 0\ndef add(a, b)\n 0\nend"],
    "java": ["class A { public static void main(String[] a) { } }\n"
             "class Problem {\n static long add(long a, long b) { return 0; }",
             "class Problem {\n static { Problem.class.getClassLoader().setDefaultAssertionStatus(false); }\n"
             " static long add(long a, long b) { return 0; }"],
    "csharp": ["class A { static void Main() { } }\nclass Problem {\n static long Add(long a, long b) { return 0; }"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("language", CUT_OFF)
def test_no_end_of_a_solution_cuts_off_the_tests(language, isolated):
    try:
        languages.find(language)
    except UserError as error:
        pytest.skip(str(error))
    tests = PARTS[language][1].replace("Debug.", "System.Diagnostics.Debug.")
    programs = [Program(text, text, tests, language=language, style="program") for text in CUT_OFF[language]]
    with Sandbox(2, Limits(cpu_seconds=4, memory_mib=128)) as sandbox:
        found = {verdict.name: verdict.outcome for verdict in sandbox.judge(programs)}
    assert set(found.values()) <= {"failed", "error"}, found


def test_a_missing_toolchain_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    languages.find.cache_clear()
    try:
        for language, package in (("java", "JDK"), ("javascript", "Node.js"), ("ruby", "Ruby"), ("csharp", "mono")):
            with pytest.raises(UserError, match=package):
                languages.find(language)
        assert languages.present() == []
    finally:
        languages.find.cache_clear()


@pytest.mark.parametrize(
    ("text", "name"),
    [("class P {}", "Problem"), ("import x;\npublic class Main {}", "Main"), ("  public final class A<T> {}", "A")],
)
def test_a_java_file_is_called_like_its_class(text, name):
    assert java_class(text) == name
