"""Python's strings and its three ways of formatting them, as JavaScript strings and template literals.

`writer` is the Expressions that writes the values.
"""

import ast
import re

from codegen2_jax.data.javascript.syntax import POSTFIX, Unsupported

_PERCENT = re.compile(r"%(?:(?P<pad>0?)(?P<width>\d*)(?P<kind>[sdirx])|%)")
_FIELD = re.compile(r"\{(\d*)(?:!([rs]))?(?::([^{}]*))?\}")
_SPECIFICATION = re.compile(
    r"(?P<align>[<>]?)(?P<pad>0?)(?P<width>[1-9]\d*|)(?:\.(?P<digits>\d+)(?=f))?(?P<kind>[sdxf]?)"
)


def string(value: str) -> str:
    """A string literal; Python's own escapes are JavaScript's too, except those beyond the first 65,536 characters."""
    if any(ord(character) > 0xFFFF for character in value):
        raise Unsupported("string outside the basic plane")
    return ascii(value)


def template_text(value: str) -> str:
    """The text part of a template literal."""
    escaped = string(value)
    plain = escaped[1:-1].replace("\\'", "'") if escaped[0] == "'" else escaped[1:-1]
    return plain.replace("`", "\\`").replace("${", "\\${")


def value_text(writer, value: ast.expr, conversion: str, specification: str) -> str:
    """One formatted value: `${...}` without the braces."""
    if conversion == "r" and not specification:
        return f"JSON.stringify({writer.text(value)})"
    if conversion not in ("", "s"):
        raise Unsupported("conversion in a format")
    if specification in ("", "s", "d"):
        return writer.text(value)
    match = _SPECIFICATION.fullmatch(specification)
    if not match or (match["kind"] == "f" and match["digits"] is None):
        raise Unsupported("format specification")
    text = f"String({writer.text(value)})"
    if match["kind"] == "f":
        text = f"{writer.text(value, POSTFIX)}.toFixed({match['digits']})"
    elif match["kind"] == "x":
        text = f"{writer.text(value, POSTFIX)}.toString(16)"
    if match["width"]:
        # Python aligns text to the left and numbers to the right.
        left = match["align"] == "<" or (not match["align"] and match["kind"] == "s")
        text += f".{'padEnd' if left else 'padStart'}({match['width']}{', ' + repr('0') if match['pad'] else ''})"
    return text


def joined(writer, node: ast.JoinedStr) -> str:
    """An f-string as a template literal."""
    parts = []
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(template_text(part.value))
            continue
        specification = ""
        if part.format_spec is not None:
            pieces = part.format_spec.values
            if not all(isinstance(piece, ast.Constant) for piece in pieces):
                raise Unsupported("computed format specification")
            specification = "".join(piece.value for piece in pieces)
        conversion = chr(part.conversion) if part.conversion > 0 else ""
        parts.append("${" + value_text(writer, part.value, conversion, specification) + "}")
    return "`" + "".join(parts) + "`"


def percent(writer, template: str, values: ast.expr) -> str:
    """'%s: %d' % (a, b) as a template literal. A right side that is no tuple display is taken as one value."""
    arguments = list(values.elts) if isinstance(values, ast.Tuple) else [values]
    text, end = "", 0
    for match in _PERCENT.finditer(template):
        text += _without_percent(template[end : match.start()])
        end = match.end()
        if match["kind"] is None:
            text += "%"
            continue
        if not arguments:
            raise Unsupported("% with too few values")
        is_repr = match["kind"] == "r"
        specification = match["pad"] + match["width"] + ("" if is_repr else match["kind"].replace("i", "d"))
        # Unlike format(), % aligns text to the right as well.
        specification = specification.removesuffix("s") if match["width"] else specification
        text += "${" + value_text(writer, arguments.pop(0), "r" if is_repr else "", specification) + "}"
    if arguments:
        raise Unsupported("% with too many values")
    return "`" + text + _without_percent(template[end:]) + "`"


def _without_percent(text: str) -> str:
    if "%" in text:
        raise Unsupported("% conversion")
    return template_text(text)


def format_call(writer, template: str, call: ast.Call) -> str:
    """'{} {}'.format(a, b) as a template literal."""
    if call.keywords or any(isinstance(argument, ast.Starred) for argument in call.args):
        raise Unsupported("format with keywords")
    pieces = _FIELD.split(template.replace("{{", "\0").replace("}}", "\1"))
    text, automatic = "", 0
    for index in range(0, len(pieces), 4):
        if "{" in pieces[index] or "}" in pieces[index]:
            raise Unsupported("format field")
        text += template_text(pieces[index].replace("\0", "{").replace("\1", "}"))
        if index + 1 == len(pieces):
            break
        number = int(pieces[index + 1]) if pieces[index + 1] else automatic
        automatic += 1
        if number >= len(call.args):
            raise Unsupported("format with too few values")
        text += "${" + value_text(writer, call.args[number], pieces[index + 2] or "", pieces[index + 3] or "") + "}"
    return "`" + text + "`"
