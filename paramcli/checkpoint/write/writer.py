"""Where tensors go: one protocol, a sink for one file and a sink for a folder of shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..header import Slot
from ..source import Source
from .safetensors_file import Check, MetadataOf, SafetensorsSink
from .sharded import INDEX_NAME, ShardedSink, plan_shards

__all__ = ["INDEX_NAME", "MetadataOf", "SafetensorsSink", "ShardedSink", "Sink", "Slot", "plan_shards"]


class Sink(Protocol):
    """Where tensors go. Used in a `with`; without commit() nothing appears."""

    def __enter__(self) -> Sink: ...

    def __exit__(self, *exception: object) -> None: ...

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """The row-major bytes of one tensor."""

    def write_part(self, name: str, at: int, data: bytes | bytearray | memoryview) -> None:
        """Some of a tensor's bytes, from byte `at` of it on; its parts come in order, without a gap."""

    def copy(self, source: Source, pairs: Iterable[tuple[str, str]]) -> None:
        """Tensors (name here, name in the source), byte for byte."""

    def abandon(self) -> None:
        """Let other threads that write here stop soon: the work has failed and the sink is about to be left."""

    def amend(self, metadata: MetadataOf) -> None:
        """The metadata as the data have settled it, in the room that was kept for it; nothing where the container has
        none.
        """

    def commit(self, *sources: Source, check: Check | None = None) -> None:
        """Publish. Sources that were copied from, and those given, must be unchanged since they were opened.

        `check` gets the output's path and the finished files under their temporary names; if it raises, nothing
        appears.
        """
