"""Syntax trees of Java and C# by tree-sitter, and what CodeBLEU must know about each language.

tree-sitter and its grammars are optional (the extra `eval`), so they are imported late; `available` says whether they
are there. The grammar decides the shape of a tree, and so belongs to the definition of every score made from it.
"""

import dataclasses
import functools
import importlib
import importlib.util
import re
from typing import Any

from codegen2_jax.errors import UserError

_COMMENT = re.compile(
    r"""
    (?P<comment> //[^\n]* | /\*.*?\*/ )
    | " (?: \\. | [^\\"] )* "       # a literal: what looks like a comment inside it is none
    | ' (?: \\. | [^\\'] )* '
    """,
    re.DOTALL | re.VERBOSE,
)
# Literals that count as one token, although the grammars split them into quotes and contents.
_WHOLE_LITERALS = frozenset({"string_literal", "string", "character_literal"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeLanguage:
    """A language as CodeBLEU sees it.

    Attributes:
      grammar: module of the tree-sitter grammar.
      keywords: white-space tokens that count fully in the keyword-weighted BLEU.
      update: node type of `i++`.
      for_each: (node type, field of the variable, field of the collection), or None where the loop is read like
        any other statement.
      declarator_fields: whether a variable_declarator names its parts "name" and "value"; otherwise its first child is
        the name, and the second the value if there are just two.
    """

    grammar: str
    keywords: frozenset[str]
    update: str
    for_each: tuple[str, str, str] | None
    declarator_fields: bool


LANGUAGES = {
    "java": CodeLanguage(
        grammar="tree_sitter_java",
        # The Java Language Specification, 3.9, without the literals true, false, null and the contextual words.
        keywords=frozenset(
            """
            abstract assert boolean break byte case catch char class const continue default do double else enum extends
            final finally float for goto if implements import instanceof int interface long native new package private
            protected public return short static strictfp super switch synchronized this throw throws transient try
            void volatile while
            """.split()
        ),
        update="update_expression",
        for_each=("enhanced_for_statement", "name", "value"),
        declarator_fields=True,
    ),
    "c_sharp": CodeLanguage(
        grammar="tree_sitter_c_sharp",
        # The C# 8 reference: the reserved words, then the contextual ones.
        keywords=frozenset(
            """
            abstract as base bool break byte case catch char checked class const continue decimal default delegate do
            double else enum event explicit extern false finally fixed float for foreach goto if implicit in int
            interface internal is lock long namespace new null object operator out override params private protected
            public readonly ref return sbyte sealed short sizeof stackalloc static string struct switch this throw true
            try typeof uint ulong unchecked unsafe ushort using virtual void volatile while

            add alias ascending async await by descending dynamic equals from get global group into join let nameof
            notnull on orderby partial remove select set unmanaged value var when where yield
            """.split()
        ),
        update="postfix_unary_expression",
        for_each=None,
        declarator_fields=False,
    ),
}


def code_language(name: str) -> CodeLanguage:
    """The language called `name`. UserError for one that is not known."""
    if name not in LANGUAGES:
        raise UserError(f"language {name!r} is unknown to CodeBLEU; the known ones are {sorted(LANGUAGES)}.")
    return LANGUAGES[name]


def available(language: str) -> bool:
    """Whether tree-sitter and the grammar of the language are installed. UserError for an unknown language."""
    modules = ("tree_sitter", code_language(language).grammar)
    return all(importlib.util.find_spec(module) is not None for module in modules)


def parse(code: str, language: str) -> Any:
    """The root node of the code's tree, comments left out. Broken code parses too, to a tree with ERROR nodes."""
    # What UTF-8 cannot hold (half a surrogate pair) becomes "?", since a model may write anything.
    return _parser(language).parse(without_comments(code).encode("utf-8", "replace")).root_node


@functools.cache
def _parser(language: str) -> Any:
    import tree_sitter

    grammar = importlib.import_module(code_language(language).grammar)
    try:
        return tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"tree-sitter cannot use the grammar {grammar.__name__} ({error}); "
            "install a matching pair: pip install 'codegen2_jax[eval]'."
        ) from error


def without_comments(code: str) -> str:
    """The stripped code, each comment replaced by a space, without the lines that are blank then."""
    kept = _COMMENT.sub(lambda match: match.group() if match["comment"] is None else " ", code.strip())
    return "\n".join(line for line in kept.split("\n") if line.strip())


def is_token(node: Any) -> bool:
    """Whether the node is a token of the data flow: a leaf or a whole literal, and no comment."""
    return (node.child_count == 0 or node.type in _WHOLE_LITERALS) and node.type != "comment"


def tokens(node: Any) -> list[Any]:
    """The tokens below a node (itself, if it is one), in the order of the text."""
    return [node] if is_token(node) else [token for child in node.children for token in tokens(child)]


def subtrees(root: Any) -> list[str]:
    """The S-expression of the root and of every node with children: types and field names, no texts of leaves."""
    found, waiting = [], [root]
    while waiting:
        node = waiting.pop()
        found.append(str(node))
        waiting.extend(child for child in node.children if child.child_count)
    return found
