"""The tensors of a checkpoint as the modules they belong to, repeated layers folded into one.

Two modules are alike when everything below them is: names, forms, chains, shapes, dtypes. Neighbours by number
that are alike (`layers.0` to `layers.31`) become one node, `layers.0-31`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from ..spelling.forms import Group


@dataclass
class Node:
    """A module: `name` below its parent, how many alike it stands for, and what it holds itself."""

    name: str
    count: int = 1
    children: list[Node] = field(default_factory=list)
    tensors: list[tuple[str, Group]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Of all that it stands for."""
        own = sum(group.nbytes for _, group in self.tensors)
        return self.count * (own + sum(child.nbytes for child in self.children))

    def look(self) -> Hashable:
        """What makes two modules alike."""
        tensors = tuple(
            (name, g.form, g.chain, g.view, g.shape, g.dtype, g.problem, g.record) for name, g in self.tensors
        )
        return tensors, tuple((child.name, child.count, child.look()) for child in self.children)


def grow(groups: Sequence[Group]) -> Node:
    """The folded tree of these tensors, in the order of the file; layers by their number."""
    root = Node("")
    places: dict[tuple[str, ...], Node] = {}
    for group in groups:
        *modules, leaf = group.tensor.split(".")
        node = root
        path: tuple[str, ...] = ()
        for module in modules:
            path += (module,)
            if path not in places:
                places[path] = Node(module)
                node.children.append(places[path])
            node = places[path]
        node.tensors.append((leaf, group))
    return _fold(root)


def _fold(node: Node) -> Node:
    folded: list[tuple[Node, Hashable]] = []
    # A file that is sorted by name has layer 10 before layer 2.
    numbered = all(_is_number(child.name) for child in node.children)
    for child in map(_fold, sorted(node.children, key=lambda child: int(child.name)) if numbered else node.children):
        look = child.look()
        if folded and _follows(folded[-1][0].name, child.name) and folded[-1][1] == look:
            before = folded[-1][0]
            before.name = f"{before.name.partition('-')[0]}-{child.name}"
            before.count += 1
        else:
            folded.append((child, look))
    node.children = [child for child, _ in folded]
    # A module that only holds another one is a longer name for it.
    if len(node.children) == 1 and not node.tensors and node.name and node.count == 1:
        child = node.children[0]
        return Node(f"{node.name}.{child.name}", child.count, child.children, child.tensors)
    return node


def _follows(before: str, name: str) -> bool:
    last = before.rpartition("-")[2]
    return _is_number(last) and _is_number(name) and int(name) == int(last) + 1


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 9


def walk(node: Node, depth: int = 0) -> Iterator[tuple[int, str, Node | Group]]:
    """(depth, name, module or tensor), each module before what it holds; one with a single tensor takes no line."""
    for name, group in node.tensors:
        yield depth, name, group
    for child in node.children:
        if child.count == 1 and not child.children and len(child.tensors) == 1:
            (name, group) = child.tensors[0]
            yield depth, f"{child.name}.{name}", group
        else:
            yield depth, child.name, child
            yield from walk(child, depth + 1)
