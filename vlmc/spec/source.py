"""From a path in a document to its place in a file."""

from __future__ import annotations

from dataclasses import dataclass

from vlmc.diagnostics import Diagnostic, Path, Problem, Span
from vlmc.spec.tree import Mapping, Sequence, Tree


@dataclass(frozen=True, slots=True)
class SourceMap:
    """The tree of a document, asked by path."""

    root: Tree

    def span(self, path: Path, *, at_key: bool = False) -> Span:
        """The place of the value at `path` (of its key with `at_key`), or of its nearest ancestor
        that is written down."""
        tree, span = self.root, self.root.span
        for depth, step in enumerate(path):
            last = depth == len(path) - 1
            if isinstance(tree, Mapping) and isinstance(step, str) and step in tree.entries:
                key = tree.keys[step]
                tree = tree.entries[step]
                span = key if (last and at_key) or isinstance(tree, Mapping) else tree.span
            elif isinstance(tree, Sequence) and isinstance(step, int) and step < len(tree.items):
                tree = tree.items[step]
                span = tree.span
            else:
                return span
        return span

    def written(self, path: Path) -> bool:
        """Whether the value at `path` stands in a file, and not in a preset or a default."""
        tree, preset = self.root, None
        for step in path:
            if isinstance(tree, Mapping) and step in tree.entries:
                preset = tree.entries.get("preset", preset)
                tree = tree.entries[str(step)]
            elif isinstance(tree, Sequence) and isinstance(step, int) and step < len(tree.items):
                tree = tree.items[step]
            else:
                return False
        return preset is None or tree is preset or tree.span != preset.span

    def locate(self, problem: Problem) -> Diagnostic:
        """The problem with its place: at its path, or at the first related value that is written
        where the value at its path is not. What a derived file says goes before its base."""
        written = [path for path in (problem.path, *problem.related) if self.written(path)]
        top = self.root.span.file
        path = min(written, key=lambda path: self.span(path).file != top, default=problem.path)
        return Diagnostic(
            code=problem.code,
            message=problem.message,
            span=self.span(path, at_key=problem.at_key),
            path=problem.path,
            expected=problem.expected,
            got=problem.got,
            help=problem.help,
            severity=problem.severity,
        )
