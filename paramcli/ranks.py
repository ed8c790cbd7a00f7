"""One run in many processes, as torchrun starts them: who takes part, what they tell each other, and how they fail.

    torchrun --nproc-per-node 8 --no-python paramcli remove FOLDER --bake -o OUT

The processes (ranks) of a run meet in torchrun's own key-value store, which torch.distributed finds for them. Only
small JSON documents go through it: the tensors move through the file system that all ranks share.

    exchange    everybody says something, everybody hears all of it
    fail        the first failure is the run's; whoever waits, or looks up between two tensors, fails with it
    publish     one decision, made once: either the first rank may publish, or the run has failed

A rank that is gone cannot say that it failed. Each of them therefore beats, and one that has not beaten for a minute is
taken for dead. Waiting is a loop of short looks, so that signals are answered at once; however long a rank computes,
the others wait while it lives.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from .errors import PATH, InputRefused, ParamcliError, Speech, UsageError
from .wording import in_shell

# What ranks say to each other: small enough for JSON.
Said = TypeVar("Said")
# torchrun sets all of them; RANK and WORLD_SIZE alone are also set where a cluster only describes itself.
_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
JOIN_SECONDS = 120
BEAT_SECONDS = 2
DEAD_SECONDS = 60
LEAVE_SECONDS = 10
# Between two looks at the store: while waiting, a little longer each time, and while working.
FIRST_LOOK_SECONDS, LOOK_SECONDS = 0.01, 0.25
# The store takes values of up to 8 MB.
_PART = 1 << 20


class RunFailed(ParamcliError):
    """Another rank failed, or is gone; the exit code is that of the rank that failed first.

    `told`: that rank has said on its stderr what happened.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: int,
        code: str,
        told: bool,
        hint: str | None = None,
        tensor: str | None = None,
        path: str | None = None,
    ):
        super().__init__(message, hint=hint, tensor=tensor, path=path)
        self.exit_code, self.code, self.told = exit_code, code, told

    def in_words(self, speak: Speech) -> str:
        """What another rank has said is a whole line already."""
        return self.message if self.told else super().in_words(speak)


class Alone:
    """A run of one process: it leads, and nobody has to be asked."""

    rank, size = 0, 1
    local_rank, local_size = 0, 1
    leads = True

    def exchange(self, subject: str, value: Said) -> list[Said]:
        """What every rank says of this, in their order: as JSON has it, where there are several."""
        return [value]

    def from_first(self, subject: str, make: Callable[[], Said]) -> Said:
        """What `make` gives on the first rank, known to all."""
        return make()

    def check(self) -> None:
        """Raise RunFailed where the run has failed elsewhere."""

    def may_publish(self) -> None:
        """The first rank's last question; raises RunFailed where the run has failed elsewhere."""

    def give_up(self) -> bool:
        """This rank is leaving early: is that the end of the run? False where the first rank publishes already."""
        return True

    def fail(self, error: ParamcliError) -> bool:
        """Tell the others that the run fails for this; True where nothing else made it fail before."""
        return True

    def leave(self) -> None:
        """Nothing more will be said or asked."""


class Store(Protocol):
    """What is used of torch's key-value store."""

    def set(self, key: str, value: bytes, /) -> object: ...

    def get(self, key: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...

    def compare_set(self, key: str, expected: str, wanted: str, /) -> bytes:
        """Set it where it has the expected value, or, for "", where it is not there; gives what it has then."""


class Ranks(Alone):
    """The ranks of one run that torchrun started, as seen by one of them."""

    def __init__(
        self, store: Store, rank: int, size: int, local_rank: int = 0, local_size: int = 1, hosts: bool = False
    ):
        """`hosts`: the store lives in this process, and the others need it to the end."""
        self.store = store
        self.hosts = hosts
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.leads = rank == 0
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._asked = self._looked = 0.0
        self._gone = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._say("beat", b"0")
        self._beating.start()
        # Everybody is there before anyone is missed.
        self._wait([f"beat/{other}" for other in range(size)], JOIN_SECONDS)

    # --- the store -------------------------------------------------------------------------------

    def _say(self, subject: str, value: bytes) -> None:
        self.store.set(f"{subject}/{self.rank}", value)

    def _beat(self) -> None:
        count = 0
        while not self._gone.wait(BEAT_SECONDS):
            count += 1
            try:
                self._say("beat", str(count).encode())
            except RuntimeError:
                return  # the store is gone; whoever asks it next finds out

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RunFailed(
                f"the store that torchrun keeps for its processes does not answer ({type(error).__name__})",
                exit_code=4,
                code="output_failed",
                told=False,
                hint="was one of its machines stopped? run it again",
            ) from None

    def _wait(self, keys: list[str], patience: float | None = None) -> None:
        """Until the store has all keys; RunFailed where the run fails meanwhile, or after `patience` seconds."""
        until = None if patience is None else time.monotonic() + patience
        pause = FIRST_LOOK_SECONDS
        with self._asking():
            # Asked in portions: a key list is one message, too.
            while keys:
                if self.store.check(keys[:64]):
                    keys = keys[64:]
                    continue
                self.check()
                if until is not None and time.monotonic() > until:
                    missing = [key.rpartition("/")[2] for key in keys if not self.store.check([key])]
                    raise RunFailed(
                        f"{len(missing)} of the {self.size} processes that RANK and WORLD_SIZE speak of did not come: "
                        f"rank {', '.join(missing[:6])}",
                        exit_code=2,
                        code="usage",
                        told=False,
                        hint="one process alone: start it without RANK, WORLD_SIZE and LOCAL_RANK in its environment",
                    )
                time.sleep(pause)
                pause = min(2 * pause, LOOK_SECONDS)

    def check(self) -> None:
        now = time.monotonic()
        if now - self._asked < LOOK_SECONDS:
            return
        self._asked = now
        with self._asking():
            if self.store.check(["failure"]):
                raise self._failure()
            if now - self._looked > BEAT_SECONDS:
                self._look_for_dead()

    def _failure(self) -> RunFailed:
        told = json.loads(self.store.get("failure"))
        return RunFailed(told.pop("message"), told=True, **told)

    def _look_for_dead(self) -> None:
        now = self._looked = time.monotonic()
        for other in range(self.size):
            if other == self.rank or not self.store.check([f"beat/{other}"]):
                continue
            beat = self.store.get(f"beat/{other}")
            before, since = self._seen.get(other, (None, now))
            if beat != before:
                self._seen[other] = beat, now
            elif now - since > DEAD_SECONDS:
                raise RunFailed(
                    f"rank {other} has given no sign of life for {DEAD_SECONDS} seconds",
                    exit_code=4,
                    code="output_failed",
                    told=False,
                    hint="look at that process and its machine, and run it again",
                )

    # --- what ranks do together ------------------------------------------------------------------

    def exchange(self, subject: str, value: Said) -> list[Said]:
        self._post(subject, value)
        return [self._read(subject, other) for other in range(self.size)]

    def from_first(self, subject: str, make: Callable[[], Said]) -> Said:
        if self.leads:
            self._post(subject, make())
        return self._read(subject, 0)

    def _post(self, subject: str, value: object) -> None:
        data = json.dumps(value).encode("ascii")
        parts = [data[at : at + _PART] for at in range(0, len(data), _PART)]
        with self._asking():
            for number, part in enumerate(parts):
                self._say(f"{subject}.{number}", part)
            self._say(subject, str(len(parts)).encode())

    def _read(self, subject: str, other: int) -> Any:
        self._wait([f"{subject}/{other}"])
        with self._asking():
            parts = int(self.store.get(f"{subject}/{other}"))
            return json.loads(b"".join(self.store.get(f"{subject}.{number}/{other}") for number in range(parts)))

    def may_publish(self) -> None:
        with self._asking():
            if self.store.compare_set("verdict", "", "publish") != b"publish":
                self._wait(["failure"], LEAVE_SECONDS)
                raise self._failure()

    def give_up(self) -> bool:
        try:
            return self.store.compare_set("verdict", "", "failed") != b"publish"
        except RuntimeError:
            return False  # nobody can be asked: what was handed over may be the first rank's by now

    def fail(self, error: ParamcliError) -> bool:
        self.give_up()
        told = {
            "message": f"rank {self.rank}: {error.in_words(in_shell)}",
            "hint": error.advised(in_shell),
            "tensor": error.tensor,
            "path": error.path and os.fspath(error.path),
            "exit_code": error.exit_code,
            "code": error.code,
        }
        document = json.dumps(told)
        try:
            return self.store.compare_set("failure", "", document) == document.encode()
        except RuntimeError:
            return True

    def leave(self) -> None:
        """Whoever hosts the store goes last."""
        try:
            self._say("left", b"")
            until = time.monotonic() + LEAVE_SECONDS
            keys = [f"left/{other}" for other in range(self.size)]
            while self.hosts and time.monotonic() < until and not self.store.check(keys):
                time.sleep(FIRST_LOOK_SECONDS)
        except RuntimeError:
            pass
        self._gone.set()
        self._beating.join(1)


def launched() -> bool:
    """Did torchrun start this process, as one of several?"""
    return all(name in os.environ for name in _LAUNCHED) and os.environ["WORLD_SIZE"] != "1"


def require_alike(run: Alone, subject: str, facts: str, path: str | os.PathLike[str]) -> None:
    """Raise InputRefused unless every rank says the same of the checkpoint at this path."""
    from hashlib import sha256  # 5 ms that no single process needs

    prints = run.exchange(subject, sha256(facts.encode("utf-8", "surrogatepass")).hexdigest())
    odd = [rank for rank, print_ in enumerate(prints) if print_ != prints[0]]
    if odd:
        raise InputRefused(
            f"rank {odd[0]} sees another checkpoint at {PATH} than rank 0 does",
            path=path,
            hint="every process of a run needs the same files and the same command line",
        )


_current: Alone = Alone()


def current() -> Alone:
    """The run this process is part of."""
    return _current


def join() -> None:
    """From here to `leave`, `current()` is the run that torchrun started, where it did. Imports torch."""
    global _current
    if not launched():
        return
    try:
        numbers = [int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    except ValueError:
        raise UsageError(
            "RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE are not all numbers", hint="torchrun sets them"
        ) from None
    free_threads()
    from datetime import timedelta

    from torch.distributed.rendezvous import rendezvous

    rank, size, local_rank, local_size = numbers
    try:
        store, *_ = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=JOIN_SECONDS)))
        # torchrun's agent keeps the store for its processes; whoever starts them otherwise leaves it to the first.
        hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        _current = Ranks(store, rank, size, local_rank, local_size, hosts)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the processes that RANK and WORLD_SIZE speak of cannot meet ({type(error).__name__})",
            hint="start them with torchrun; "
            "one process alone: without RANK, WORLD_SIZE and LOCAL_RANK in its environment",
        ) from None


def leave() -> None:
    global _current
    _current.leave()
    _current = Alone()


def free_threads() -> None:
    """Give torch the threads it has in a run of one process: float results depend on their number.

    torchrun says OMP_NUM_THREADS=1 where its user says nothing. What the user says is in torchrun's own environment.
    """
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            said = any(entry.startswith(b"OMP_NUM_THREADS=") for entry in file.read().split(b"\0"))
    except OSError:
        return
    if not said and os.environ.get("OMP_NUM_THREADS") == "1":
        del os.environ["OMP_NUM_THREADS"]
