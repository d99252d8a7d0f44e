"""The data flow of a piece of code: which value comes from which, with the names of variables numbered away.

The rules are those of CodeXGLUE's evaluator (CodeBLEU, arXiv 2009.10297, section 3.3) as the PyPI package codebleu
0.7.0 applies them to today's grammars. A token counts as a variable when its text differs from its type, so names,
types, fields and numbers do; keywords and punctuation do not. Reading the tree in order, with `states` holding where
each name last got its value:

* a name that is known comes from all its places in `states`; an unknown identifier gets its place there;
* a declaration's name comes from every variable of its value; an assignment's left side is computed from every
  variable of its right side, also for `+=`; `i++` is computed from itself;
* the branches of `if` start from the same states, and their ends are joined, with the start's if there is no `else`;
* the bodies of `while` and Java's for-each are read twice, and of a Java `for` that declares its variable what follows
  the declaration, so that a value can come from the round before.

In C# the value of a declaration is not read and for-each is no loop, because those rules know an older grammar; we keep
that, so that scores can be compared with the package's.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from codegen2_jax.metrics.code_trees import code_language, is_token, tokens

COMES_FROM, COMPUTED_FROM = "comesFrom", "computedFrom"
_IF = ("if_statement", "else")
# Where each known name last got its value, as token numbers.
_States = dict[str, frozenset[int]]


@dataclasses.dataclass(kw_only=True)
class _Flow:
    """Where one token's value comes from. sources keeps its order; places are token numbers."""

    name: str
    relation: str
    sources: dict[str, None] = dataclasses.field(default_factory=dict)
    places: set[int] = dataclasses.field(default_factory=set)


def data_flow(root: Any, language: str) -> Counter:
    """Counts of (variable, relation, (source variables, ...)) in the tree of `parse`, each variable a number.

    Variables are numbered in the order in which the items name them, sources first, so renaming all of them changes
    nothing. Code nested deeper than Python recurses has no data flow, as in the package.
    """
    try:
        flows = _Reader(root, language).flows
    except RecursionError:
        return Counter()
    used = {place for place, flow in flows.items() if flow.places}.union(*(flow.places for flow in flows.values()))
    numbers: dict[str, int] = {}
    items = Counter()
    for place in sorted(used & flows.keys()):
        flow = flows[place]
        sources = tuple(numbers.setdefault(name, len(numbers)) for name in flow.sources)
        items[numbers.setdefault(flow.name, len(numbers)), flow.relation, sources] += 1
    return items


class _Reader:
    """Reads a tree once; `flows` maps a token's number to its _Flow."""

    def __init__(self, root: Any, language: str):
        self.language = code_language(language)
        self.flows: dict[int, _Flow] = {}
        # Tokens that the parser made up have no width and may share a place: the last one's number is theirs.
        self.numbers = {(token.start_byte, token.end_byte): number for number, token in enumerate(tokens(root))}
        self.read(root, {})

    def read(self, node: Any, states: _States) -> None:
        """Adds the flows below a node and brings `states` up to date."""
        for_each = self.language.for_each
        if is_token(node):
            self._read_token(node, states)
        elif node.type == "variable_declarator":
            self._read_declaration(node, states)
        elif node.type == "assignment_expression":
            left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
            self.read(right, states)
            self._assign(left, right, COMPUTED_FROM, states)
        elif node.type == self.language.update:
            self._assign(node, node, COMPUTED_FROM, states)
        elif node.type == "if_statement":
            self._read_branches(node, states)
        elif node.type == "for_statement":
            self._read_for(node, states)
        elif for_each is not None and node.type == for_each[0]:
            name, values = (node.child_by_field_name(field) for field in for_each[1:])
            for _ in range(2):
                self.read(values, states)
                self._assign(name, values, COMPUTED_FROM, states)
                self.read(node.child_by_field_name("body"), states)
        else:
            for child in node.children * (2 if node.type == "while_statement" else 1):
                self.read(child, states)

    def _read_token(self, node: Any, states: _States) -> None:
        number, text = self._number(node), _text(node)
        if text == node.type:
            return
        if text in states:
            self._add(number, text, COMES_FROM, text, states[text])
            return
        if node.type == "identifier":
            states[text] = frozenset({number})
        self._add(number, text, COMES_FROM)

    def _read_declaration(self, node: Any, states: _States) -> None:
        if self.language.declarator_fields:
            name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        else:
            name, value = node.children[0], node.children[1] if node.child_count == 2 else None
        if value is not None:
            self.read(value, states)
        self._assign(name, value, COMES_FROM, states)

    def _read_branches(self, node: Any, states: _States) -> None:
        before, first = dict(states), dict(states)
        ends: list[Mapping[str, frozenset[int]]] = [first]
        children = node.children
        in_first = True
        for child in children:
            # `else`, or an `if` directly below; all that follows starts from the states before the statement.
            in_first = in_first and child.type not in _IF
            if not in_first:
                ends.append(dict(before))
            self.read(child, ends[-1])
        if not any("else" in child.type for child in children):
            ends.append(before)
        states.clear()
        for end in ends:
            for name, places in end.items():
                states[name] = states.get(name, frozenset()) | places

    def _read_for(self, node: Any, states: _States) -> None:
        children = node.children
        for child in children:
            self.read(child, states)
        types = [child.type for child in children]
        if "local_variable_declaration" in types:
            for child in children[types.index("local_variable_declaration") + 1 :]:
                self.read(child, states)

    def _assign(self, target: Any, value: Any | None, relation: str, states: _States) -> None:
        """Every variable of the target comes from every one of the value; value None: it is declared only."""
        sources = [] if value is None else self._variables(value)
        for number, name in self._variables(target):
            if value is None:
                self._add(number, name, relation)
            for source_number, source in sources:
                self._add(number, name, relation, source, frozenset({source_number}))
            states[name] = frozenset({number})

    def _variables(self, node: Any) -> list[tuple[int, str]]:
        named = [(token, _text(token)) for token in tokens(node)]
        return [(self._number(token), text) for token, text in named if text != token.type]

    def _number(self, token: Any) -> int:
        return self.numbers[token.start_byte, token.end_byte]

    def _add(
        self, number: int, name: str, relation: str, source: str | None = None, places: frozenset[int] = frozenset()
    ) -> None:
        flow = self.flows.setdefault(number, _Flow(name=name, relation=relation))
        if source is not None:
            flow.sources[source] = None
        flow.places |= places


def _text(token: Any) -> str:
    """The token's text; line ends inside a literal do not count."""
    return token.text.decode("utf-8").replace("\n", "")
