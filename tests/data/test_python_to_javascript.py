"""JavaScript from Python: golden texts, node's own parser, and the same answers in both languages."""

import ast
import json
import shutil
import subprocess

import pytest

from codegen2_jax.data import pytask_cl
from codegen2_jax.data.javascript.from_python import to_javascript
from codegen2_jax.data.javascript.syntax import Unsupported
from codegen2_jax.data.sources import SPLITS

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not on this machine")


def javascript(text, **options):
    return to_javascript(ast.parse(text).body[0], **options)


def body(*lines):
    """A Python function of these lines, written as JavaScript, without its first and last line."""
    text = "def f(a, b, c):\n" + "\n".join(f"    {line}" for line in lines)
    return [line.removeprefix("  ") for line in javascript(text).split("\n")[1:-1]]


def test_a_method():
    text = '''
def find(self, name, default=None, *rest):
    for key, value in self.items.items():
        if key == name and value is not None:
            return f"{key}: {value!r}"
    try:
        first = rest[0]
    except IndexError as error:
        raise KeyError(f"no {name}") from error
    return first or default
'''
    expected = """\
function find(name, default_ = null, ...rest) {
  let first;
  for (const [key, value] of Object.entries(this.items)) {
    if (key === name && value !== null) {
      return `${key}: ${JSON.stringify(value)}`;
    }
  }
  try {
    first = rest[0];
  } catch (error) {
    if (error instanceof RangeError) {
      throw new Error(`no ${name}`, { cause: error });
    } else {
      throw error;
    }
  }
  return first || default_;
}"""
    assert javascript(text, in_class=True) == expected


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ("return a and (b or c)", "return a && (b || c);"),
        ("return not (a == b)", "return !(a === b);"),
        ("return -(a + b) ** 2", "return -((a + b) ** 2);"),
        ("return (-a) ** b", "return (-a) ** b;"),
        ("return a - (b - c)", "return a - (b - c);"),
        ("return a // b + 1", "return Math.floor(a / b) + 1;"),
        ("return (a if b else c) + 1", "return (b ? a : c) + 1;"),
        ("return a < b <= c", "return a < b && b <= c;"),
        ("return a.get(b) or c", "return (a[b] ?? null) || c;"),
        ("return a is None", "return a === null;"),
        ("return a in (1, 2)", "return [1, 2].includes(a);"),
        ("return a not in {'x': 1}", "return !(a in { x: 1 });"),
        ("return a in b and b[a]", "return a in b && b[a];"),
        ("return a[-1], a[1:], a[:b], a[::-1]", "return [a.at(-1), a.slice(1), a.slice(0, b), [...a].reverse()];"),
        ("return [x * 2 for x in a if x > b]", "return a.filter((x) => x > b).map((x) => x * 2);"),
        ("return {k: v for k, v in a.items()}",
         "return Object.fromEntries(Object.entries(a).map(([k, v]) => [k, v]));"),
        ("return any(x.ok for x in a)", "return a.some((x) => x.ok);"),
        ("return ', '.join(str(x) for x in a)", "return a.map((x) => String(x)).join(', ');"),
        ("return lambda x: {'y': x}", "return (x) => ({ y: x });"),
        ("return isinstance(a, (str, list, Thing))",
         "return typeof a === 'string' || Array.isArray(a) || a instanceof Thing;"),
        ("return '%s has %d %%' % (a, b)", "return `${a} has ${b} %`;"),
        ("return '%5.1f' % a, 1", None),
        ("return '{}/{:.2f}/{{}}'.format(a, b)", "return `${a}/${b.toFixed(2)}/{}`;"),
        ("return f'`{a:>3}` ${{{b:02x}}}'",
         "return `\\`${String(a).padStart(3)}\\` \\${${b.toString(16).padStart(2, '0')}}`;"),
        ("return 'it\\'s\\n', \"x\"", "return [\"it's\\n\", 'x'];"),
        ("return Thing(a, key=b, **c)", "return new Thing(a, { key: b, ...c });"),
        ("return a.CONSTANT(b)", "return a.CONSTANT(b);"),
        ("return len(a), max(a), max(a, b), int(a), sorted(a)",
         "return [a.length, Math.max(...a), Math.max(a, b), parseInt(a, 10), [...a].sort()];"),
        ("return getattr(a, 'x', b), hasattr(a, 'x')", "return [a.x ?? b, 'x' in a];"),
        ("return (a, *b)", "return [a, ...b];"),
        ("return a + [b]", "return [...a, b];"),
        ("return '=' * a", "return '='.repeat(a);"),
        ("return (5).real", "return (5).real;"),
        ("a.b['key'], a[b] = b, c", "[a.b.key, a[b]] = [b, c];"),
        ("del a[b]", "delete a[b];"),
        ("a += [b]", "a.push(b);"),
        ("a //= 2", "a = Math.floor(a / 2);"),
        ("print(a, b)", "console.log(a, b);"),
        ("a.append(b)", "a.push(b);"),
        ("raise ValueError", "throw new Error();"),
        ("raise errors.ParseError(a)", "throw new errors.ParseError(a);"),
    ],
)  # fmt: skip
def test_one_statement(python, expected):
    if expected is None:
        with pytest.raises(Unsupported):
            body(python)
    else:
        assert body(python) == [expected]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["x = a", "return x"], ["const x = a;", "return x;"]),
        (["x = a", "x = x + 1", "return x"], ["let x = a;", "x = x + 1;", "return x;"]),
        (["if a:", "    x = 1", "else:", "    x = 2", "return x"],
         ["let x;", "if (a) {", "  x = 1;", "} else {", "  x = 2;", "}", "return x;"]),
        (["if a:", "    x = 1", "    b(x)"], ["if (a) {", "  const x = 1;", "  b(x);", "}"]),
        (["for x in a:", "    if x:", "        y = x", "    b(y)"],
         ["let y;", "for (const x of a) {", "  if (x) {", "    y = x;", "  }", "  b(y);", "}"]),
        (["for x in a:", "    pass", "return x"], ["let x;", "for (x of a) {", "}", "return x;"]),
        (["x, y = a", "x += 1", "return x, y"], ["let [x, y] = a;", "x += 1;", "return [x, y];"]),
        (["x, a.y = b", "return x"], ["let x;", "[x, a.y] = b;", "return x;"]),
        (["a = b", "return a"], ["a = b;", "return a;"]),
        (["global G", "G = a"], ["G = a;"]),
        (["x = y = a", "return x + y"], ["let x, y;", "x = y = a;", "return x + y;"]),
        (["while (x := a()):", "    b(x)"], ["let x;", "while ((x = a())) {", "  b(x);", "}"]),
        (["def g(x):", "    nonlocal n", "    n = x", "n = 0", "g(1)", "return n"],
         ["let n;", "const g = (x) => {", "  n = x;", "};", "n = 0;", "g(1);", "return n;"]),
        (["for i in range(a):", "    b(i)"], ["for (let i = 0; i < a; i++) {", "  b(i);", "}"]),
        (["for i in range(a, 0, -2):", "    b(i)"], ["for (let i = a; i > 0; i -= 2) {", "  b(i);", "}"]),
        (["for i, x in enumerate(a):", "    b(i, x)"], ["for (const [i, x] of a.entries()) {", "  b(i, x);", "}"]),
        (["try:", "    a()", "except OSError:", "    pass", "finally:", "    b()"],
         ["try {", "  a();", "} catch {", "} finally {", "  b();", "}"]),
        (["try:", "    a()", "except ValueError:", "    raise"],
         ["try {", "  a();", "} catch (error) {", "  throw error;", "}"]),
        (["assert a, 'no a'"], ["if (!a) {", "  throw new Error('no a');", "}"]),
    ],
)  # fmt: skip
def test_declarations_and_blocks(lines, expected):
    assert body(*lines) == expected


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        ("with a:\n        b()", "With"),
        ("return super().f()", r"super\(\)"),
        ("return b'x'", "constant bytes"),
        ("return a[::2]", "slice with a step"),
        ("a[1:2] = b", "store to a slice"),
        ("a[-1] = b", "negative index"),
        ("for x in a:\n        pass\n    else:\n        b()", "else of a loop"),
        ("return [x for y in a for x in y]", "nested"),
        ("for i in range(3):\n        i += 1", "counting variable"),
        ("return sorted(a, key=b)", "sorted with keywords"),
        ("import os", "Import"),
        ("for (x, x) in a:\n        b(x)", "twice"),
        ("return a.encode()", "method encode"),
        ("return a @ b", "MatMult"),
        ("try:\n        a()\n    except OSError:\n        b()\n    except ValueError:\n        c()", "tell apart"),
    ],
)
def test_what_has_no_counterpart_is_refused(python, reason):
    with pytest.raises(Unsupported, match=reason):
        javascript(f"def f(a, b, c):\n    {python}")


def test_functions_of_each_kind():
    assert javascript("async def f(a):\n    return await a").startswith("async function f(a) {\n  return await a;")
    assert javascript("def f(a):\n    yield a").startswith("function* f(a) {\n  yield a;")
    assert javascript("def f(a, *, b=1, **k):\n    return k").startswith("function f(a, { b = 1, ...k } = {}) {")
    method = javascript("def delete(cls):\n    return cls.name", in_class=True)
    assert method == "function delete_() {\n  return this.name;\n}"
    assert javascript("def f(id, list):\n    return id + list") == "function f(id, list) {\n  return id + list;\n}"


PROGRAMS = '''
def gcd(a, b):
    while b:
        a, b = b, a % b
    return a

def classify(values, limit=3):
    small, large = [], []
    for index, value in enumerate(values):
        if value < limit and not index == 4:
            small.append(value)
        elif value is None or 10 <= value < 20:
            continue
        else:
            large.append(value ** 2 // 3)
    total = 0
    for i in range(len(large) - 1, -1, -1):
        total += large[i] * (i + 1)
    return {'small': small, 'large': large[::-1], 'total': total, 'last': values[-1]}

def table(rows, width=4):
    lines = []
    seen = {}
    for name, count in rows:
        if name in seen:
            seen[name] += count
        else:
            seen[name] = count
    for name, count in seen.items():
        mark = '*' * count if count < 5 else 'many'
        lines.append('%s|%s' % (name.upper().rjust(width), mark))
        lines.append(f'{count:03d}/{count / 4:.2f}')
    return ' '.join(line for line in lines if not line.startswith('#'))

def nested(values):
    calls = 0
    def visit(value, depth=0):
        nonlocal calls
        calls += 1
        if isinstance(value, list):
            return max([depth] + [visit(item, depth + 1) for item in value])
        return depth
    deepest = visit(values)
    return deepest, calls, all(isinstance(value, list) for value in values)

def guarded(value):
    log = []
    try:
        if value > 2:
            raise ValueError('too large: {}'.format(value))
        result = value + 1
    except ValueError:
        result = -1
        log.append('caught')
    finally:
        log.append('done')
    first, *rest = [result, *log]
    return first, rest
'''
CALLS = [
    ("gcd", [48, 36]), ("gcd", [7, 0]), ("classify", [[1, 12, 5, 2, 2, 9]]), ("classify", [[1], 0]),
    ("table", [[["a", 1], ["#b", 7], ["a", 2]]]), ("table", [[["a", 1]], 9]), ("nested", [[1, [2, [3]], []]]),
    ("nested", [[]]), ("guarded", [1]), ("guarded", [3]),
]  # fmt: skip


@needs_node
def test_both_languages_give_the_same_answers(tmp_path):
    scope = {}
    exec(compile(PROGRAMS, "programs", "exec"), scope)
    expected = [json.loads(json.dumps(scope[name](*json.loads(json.dumps(arguments))))) for name, arguments in CALLS]
    functions = "\n".join(to_javascript(node) for node in ast.parse(PROGRAMS).body)
    calls = ", ".join(f"{name}(...{json.dumps(arguments)})" for name, arguments in CALLS)
    program = tmp_path / "programs.js"
    program.write_text(f"'use strict';\n{functions}\nconsole.log(JSON.stringify([{calls}]));\n")
    output = subprocess.run(["node", str(program)], capture_output=True, text=True, check=True)
    assert json.loads(output.stdout) == expected


@needs_node
def test_node_parses_every_translation_of_pytask_cl(tmp_path):
    made = pytask_cl.examples_of("pytask_translate").examples
    texts = [example.targets for split in SPLITS for example in made[split]]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    program = tmp_path / "parse.js"
    program.write_text(
        "const vm = require('vm');\n"
        f"const texts = JSON.parse(require('fs').readFileSync({json.dumps(str(tmp_path / 'texts.json'))}));\n"
        "const bad = [];\n"
        "for (const text of texts) {\n"
        "  try { new vm.Script(\"'use strict';\\n\" + text); } catch (error) { bad.push(`${error}: ${text}`); }\n"
        "}\n"
        "console.log(JSON.stringify({ parsed: texts.length - bad.length, bad: bad.slice(0, 5) }));\n"
    )
    output = subprocess.run(["node", str(program)], capture_output=True, text=True, check=True)
    assert json.loads(output.stdout) == {"parsed": len(texts), "bad": []} and len(texts) > 3000
