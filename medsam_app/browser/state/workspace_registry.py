"""Registry of workspaces by token, bounded in number, idle time and memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from threading import RLock

from medsam_app.browser.state.workspace_files import ENDED
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import VolumeError
from medsam_app.system import format_bytes, machine_memory

#: Workspaces kept at a time, and seconds after which an idle one is freed.
MOST_WORKSPACES = 64
IDLE_SECONDS = 6 * 3600.0
#: Seconds since the last action within which a workspace counts as active and is not evicted.
AT_WORK_SECONDS = 120.0
#: Bytes for all workspaces where the system does not say what it has.
_SOME_BYTES = 4 * 10**9
_REMEMBERED = 1000
BEGIN_ANEW = "reload the page to begin a new one"
IDLED = f"This session was not used for hours and has ended; {BEGIN_ANEW}."
CROWDED = f"This session was not in use, and others needed its memory: it has ended; {BEGIN_ANEW}."


class Workspaces:
    """Workspaces by token. When they hold too much, the largest and longest idle go first.

    Args:
        most: workspaces kept at a time.
        idle_seconds: how long one is kept without a request.
        limit: bytes that all may hold together, by default half of the machine's memory. A volume
            that several share counts once.
        at_work_seconds: how long after a request a workspace is not freed for others.
        clock: seconds.
    """

    def __init__(
        self,
        *,
        most: int = MOST_WORKSPACES,
        idle_seconds: float = IDLE_SECONDS,
        limit: int | None = None,
        at_work_seconds: float = AT_WORK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = most
        self.idle_seconds = idle_seconds
        self.limit = (machine_memory() or 2 * _SOME_BYTES) // 2 if limit is None else limit
        self.at_work_seconds = at_work_seconds
        self._clock = clock
        self._lock = RLock()
        self._by_token: OrderedDict[str, Workspace] = OrderedDict()
        self._why: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_token)

    @property
    def nbytes(self) -> int:
        """Memory that all hold, in bytes."""
        with self._lock:
            found = list(self._by_token.values())
        arrays = {id(array): array.nbytes for each in found if (array := each.array) is not None}
        return sum(arrays.values()) + sum(each.nbytes for each in found)

    def create(self, token: str | None = None) -> Workspace:
        """A new workspace, of a token of its own unless one is given; old ones make room."""
        with self._lock:
            workspace = Workspace()
            if token is not None:
                workspace.token = token
            workspace.last_used = self._clock()
            self._by_token[workspace.token] = workspace
            self._free()
            return workspace

    def get(self, token: str | None, *, at_work: bool = True) -> Workspace | None:
        """The workspace of a token, or None.

        Args:
            at_work: whether the request is an action; requests that only poll do not keep a workspace alive.
        """
        with self._lock:
            self._free()
            workspace = self._by_token.get(token or "")
            if workspace is not None and at_work:
                workspace.last_used = self._clock()
                self._by_token.move_to_end(workspace.token)
            return workspace

    def why_ended(self, token: str | None) -> str:
        """Return a sentence for a caller whose token is unknown."""
        return self._why.get(token or "", ENDED)

    def make_room(self, mine: Workspace, needed: int = 0) -> None:
        """Free what others do not use until all hold no more than the limit.

        First what predictors remember goes, which costs only time; then whole workspaces.

        Args:
            mine: whose volume stays.
            needed: bytes that are about to be added to it, in place of its volume.

        Raises:
            VolumeError: they do not fit in addition to the active workspaces.
        """
        with self._lock:
            # What is open in `mine` goes when the new volume comes, but until then both are there.
            def over() -> bool:
                return self.nbytes + needed > self.limit

            for forget in (True, False):
                for each in self._not_in_use(mine):
                    if not over():
                        return
                    if forget:
                        each.forget()
                    else:
                        self._end(each, CROWDED)
            if needed and over():
                raise VolumeError(
                    f"This volume takes {format_bytes(needed)} of memory, and of the "
                    f"{format_bytes(self.limit)} for everybody {format_bytes(self.nbytes)} are taken; "
                    "open a smaller one, or come back when others have ended."
                )
            if over():
                mine.forget()

    def end(self, workspace: Workspace) -> None:
        """Free one."""
        with self._lock:
            self._end(workspace, ENDED)

    def close(self) -> None:
        """Free all."""
        with self._lock:
            for workspace in list(self._by_token.values()):
                self._end(workspace, ENDED)

    def _not_in_use(self, mine: Workspace) -> list[Workspace]:
        """Return idle workspaces, ordered by bytes x idle seconds, largest first."""
        now = self._clock()

        def cost(each: Workspace) -> float:
            array = each.array
            return (now - each.last_used) * (each.nbytes + (0 if array is None else array.nbytes))

        idle = [
            each
            for each in self._by_token.values()
            if each is not mine and now - each.last_used >= self.at_work_seconds
        ]
        return sorted(idle, key=cost, reverse=True)

    def _end(self, workspace: Workspace, why: str) -> None:
        self._by_token.pop(workspace.token, None)
        self._why[workspace.token] = why
        while len(self._why) > _REMEMBERED:
            self._why.popitem(last=False)
        workspace.close()

    def _free(self) -> None:
        oldest = self._clock() - self.idle_seconds
        while self._by_token:
            first = next(iter(self._by_token.values()))
            if first.last_used < oldest:
                self._end(first, IDLED)
            elif len(self._by_token) > self.most:
                self._end(first, CROWDED)
            else:
                return
