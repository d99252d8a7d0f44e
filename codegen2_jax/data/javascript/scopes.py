"""Where the variables of a Python function are declared when it is written as JavaScript.

Python's variables belong to the function, JavaScript's let and const to a block. A variable is declared with its first
assignment where that assignment dominates every use; otherwise by a `let` at the top of the function.
"""

import ast
import collections
import dataclasses

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
# A place: (id of a block, index of the statement in it), from the function's body inwards.
Place = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declarations:
    """statements: id of an assignment or loop -> "const" or "let"; hoisted: names for one `let` at the top."""

    statements: dict[int, str]
    hoisted: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Use:
    place: Place
    statement: ast.stmt | None
    stores: bool


class _Uses(ast.NodeVisitor):
    """Every use of a name in one function, nested scopes resolved."""

    def __init__(self):
        self.uses: dict[str, list[_Use]] = collections.defaultdict(list)
        self.globals: set[str] = set()
        self.nonlocals: set[str] = set()
        self._place: Place = ()
        self._statement: ast.stmt | None = None
        self._hidden: list[set[str]] = []
        self._inside = 0  # nested functions around the place

    def block(self, statements: list[ast.stmt]) -> None:
        outer = self._place, self._statement
        for index, statement in enumerate(statements):
            self._place, self._statement = (*outer[0], (id(statements), index)), statement
            self.visit(statement)
        self._place, self._statement = outer

    def _within(self, names: set[str], *nodes) -> None:
        self._hidden.append(names)
        for node in nodes:
            self.block(node) if isinstance(node, list) else self.visit(node)
        self._hidden.pop()

    def _record(self, name: str, stores: bool) -> None:
        if not any(name in names for names in self._hidden):
            self.uses[name].append(_Use(self._place, self._statement, stores))

    def visit_Name(self, node: ast.Name) -> None:
        self._record(node.id, not isinstance(node.ctx, ast.Load))

    def visit_Global(self, node: ast.Global) -> None:
        if not self._inside:
            self.globals.update(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        if not self._inside:
            self.nonlocals.update(node.names)

    def visit_If(self, node: ast.If | ast.While) -> None:
        self.visit(node.test)
        self.block(node.body)
        self.block(node.orelse)

    visit_While = visit_If

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        outer = self._place
        self._place = (*outer, (id(node), 0))
        self.visit(node.target)
        self.block(node.body)
        self._place = outer
        self.block(node.orelse)

    visit_AsyncFor = visit_For

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)  # read before written
        for target in node.targets:
            self.visit(target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        self.visit(node.target)
        if isinstance(node.target, ast.Name):
            self._record(node.target.id, False)

    def visit_Try(self, node: ast.Try) -> None:
        self.block(node.body)
        for handler in node.handlers:
            if handler.type is not None:
                self.visit(handler.type)
            self._within({handler.name} if handler.name else set(), handler.body)
        self.block(node.orelse)
        self.block(node.finalbody)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._defaults(node.args)
        self._within(parameter_names(node.args), node.body)

    def visit_FunctionDef(self, node: FunctionNode) -> None:
        self._record(node.name, True)
        self._defaults(node.args)
        inner = _Uses()
        inner.block(node.body)
        own = {name for name, uses in inner.uses.items() if any(use.stores for use in uses)} - inner.nonlocals
        self._inside += 1
        self._within(own | inner.globals | parameter_names(node.args), node.body)
        self._inside -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def _defaults(self, arguments: ast.arguments) -> None:
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            if default is not None:
                self.visit(default)

    def _visit_comprehension(self, node: Comprehension) -> None:
        self.visit(node.generators[0].iter)
        bound = {
            name.id
            for generator in node.generators
            for name in ast.walk(generator.target)
            if isinstance(name, ast.Name)
        }
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        conditions = [condition for generator in node.generators for condition in generator.ifs]
        self._within(bound, *conditions, *(generator.iter for generator in node.generators[1:]), *parts)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension


def parameter_names(arguments: ast.arguments) -> set[str]:
    """The names that a signature binds."""
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {argument.arg for argument in named if argument is not None}


def declarations(node: FunctionNode) -> Declarations:
    """Declares every variable of the function once; parameters, globals and nonlocals are not its variables."""
    uses = _Uses()
    uses.block(node.body)
    outer = uses.globals | uses.nonlocals | parameter_names(node.args)
    variables = {
        name: found for name, found in uses.uses.items() if name not in outer and any(use.stores for use in found)
    }
    wanted = {name: _declaring_statement(name, found) for name, found in variables.items()}
    hoisted = {name for name, statement in wanted.items() if statement is None}
    # A destructuring declares all its names or none.
    changed = True
    while changed:
        changed = False
        for name, statement in wanted.items():
            others = _target_names(statement) if name not in hoisted else set()
            if any(wanted.get(other) is not statement or other in hoisted for other in others):
                hoisted.add(name)
                changed = True
    kinds: dict[int, str] = {}
    for name, statement in wanted.items():
        if name in hoisted or isinstance(statement, FunctionNode):
            continue
        single = sum(use.stores for use in variables[name]) == 1
        kinds[id(statement)] = "const" if single and kinds.get(id(statement), "const") == "const" else "let"
    return Declarations(statements=kinds, hoisted=tuple(name for name in variables if name in hoisted))


def _declaring_statement(name: str, uses: list[_Use]) -> ast.stmt | None:
    """The assignment, loop or nested function that can declare the name, or None."""
    common = _common([use.place for use in uses])
    first = uses[0]
    if not first.stores:
        # Uses are in order of visits, an assignment's value before its target: read before written.
        return None
    statement = first.statement
    if isinstance(statement, ast.For | ast.AsyncFor):
        return statement if common and common[-1][0] == id(statement) else None
    if isinstance(statement, FunctionNode):
        return statement if sum(use.stores for use in uses) == 1 and len(first.place) == _depth(common, uses) else None
    is_plain = isinstance(statement, ast.Assign) and len(statement.targets) == 1
    if not is_plain or name not in _target_names(statement):
        return None
    inside = [use for use in uses if use.statement is statement]
    return statement if len(inside) == 1 and len(first.place) == _depth(common, uses) else None


def _common(places: list[Place]) -> Place:
    """The longest common prefix: the innermost block entry, or loop header, that all places lie in."""
    common = places[0]
    for place in places[1:]:
        length = 0
        while length < min(len(common), len(place)) and common[length] == place[length]:
            length += 1
        common = common[:length]
    return common


def _depth(common: Place, uses: list[_Use]) -> int:
    """How deep the innermost block that holds all uses is: a place directly in it has this length."""
    if all(use.place == common for use in uses):
        return len(common)
    same_block = all(len(use.place) > len(common) for use in uses)
    blocks = {use.place[len(common)][0] for use in uses if len(use.place) > len(common)}
    return len(common) + 1 if same_block and len(blocks) == 1 else -1


def _target_names(statement: ast.stmt | None) -> set[str]:
    """The names that a declaration of this statement would declare; a target that is no name makes it none's."""
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
    elif isinstance(statement, ast.For | ast.AsyncFor):
        target = statement.target
    else:
        return set()
    parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    starred = {part.value.id for part in parts if isinstance(part, ast.Starred) and isinstance(part.value, ast.Name)}
    return names | starred if len(names) + len(starred) == len(parts) else set()
