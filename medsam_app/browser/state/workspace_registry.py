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

#: Largest number of workspaces, and seconds after which an idle one is evicted.
MOST_WORKSPACES = 64
IDLE_SECONDS = 6 * 3600.0
#: Seconds since the last action within which a workspace counts as active and is not evicted.
ACTIVE_SECONDS = 120.0
#: Memory limit in bytes where the memory of the machine is unknown.
_DEFAULT_BYTES = 4 * 10**9
#: Ended workspaces whose reason is remembered.
_REMEMBERED = 1000
RELOAD = "reload the page to begin a new one"
EXPIRED = f"This session was not used for hours and has ended; {RELOAD}."
EVICTED = f"This session was not in use, and others needed its memory: it has ended; {RELOAD}."


class WorkspaceRegistry:
    """Workspaces by token.

    When they use too much memory, the largest and longest idle ones are evicted first.

    Args:
        most: largest number of workspaces.
        idle_seconds: time without a request after which a workspace is evicted, in seconds.
        limit: memory of all workspaces together in bytes, by default half of the machine's memory. A volume
            that several workspaces share counts once.
        active_seconds: time after a request during which a workspace is not evicted for others, in seconds.
        clock: function that returns the time in seconds.
    """

    def __init__(
        self,
        *,
        most: int = MOST_WORKSPACES,
        idle_seconds: float = IDLE_SECONDS,
        limit: int | None = None,
        active_seconds: float = ACTIVE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = most
        self.idle_seconds = idle_seconds
        self.limit = (machine_memory() or 2 * _DEFAULT_BYTES) // 2 if limit is None else limit
        self.active_seconds = active_seconds
        self._clock = clock
        self._lock = RLock()
        self._by_token: OrderedDict[str, Workspace] = OrderedDict()
        self._reasons: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_token)

    @property
    def nbytes(self) -> int:
        """Memory of all workspaces in bytes; shared volumes count once."""
        with self._lock:
            workspaces = list(self._by_token.values())
        arrays = {id(array): array.nbytes for item in workspaces if (array := item.array) is not None}
        return sum(arrays.values()) + sum(item.nbytes for item in workspaces)

    def create(self, token: str | None = None) -> Workspace:
        """Create a workspace, with a new token unless one is given; old workspaces may be evicted."""
        with self._lock:
            workspace = Workspace()
            if token is not None:
                workspace.token = token
            workspace.last_used = self._clock()
            self._by_token[workspace.token] = workspace
            self._evict_expired()
            return workspace

    def get(self, token: str | None, *, active: bool = True) -> Workspace | None:
        """Return the workspace of a token, or None.

        Args:
            token: token of the page.
            active: whether the request counts as use; requests that only poll do not keep a workspace alive.
        """
        with self._lock:
            self._evict_expired()
            workspace = self._by_token.get(token or "")
            if workspace is not None and active:
                workspace.last_used = self._clock()
                self._by_token.move_to_end(workspace.token)
            return workspace

    def why_ended(self, token: str | None) -> str:
        """Return a sentence that explains why a token is not valid any more."""
        return self._reasons.get(token or "", ENDED)

    def evict(self, keep: Workspace, needed: int = 0) -> None:
        """Free memory of idle workspaces until all together are within the limit.

        Caches of predictors are freed first, since they can be recomputed, then whole workspaces.

        Args:
            keep: workspace that needs the memory and is not evicted.
            needed: bytes that the workspace is about to need in addition to its volume.

        Raises:
            VolumeError: these bytes do not fit in addition to the active workspaces.
        """
        with self._lock:
            # The old volume of `keep` is freed when the new one is opened; until then both take memory.
            def over() -> bool:
                return self.nbytes + needed > self.limit

            for caches_only in (True, False):
                for workspace in self._idle(keep):
                    if not over():
                        return
                    if caches_only:
                        workspace.forget()
                    else:
                        self._end(workspace, EVICTED)
            if needed and over():
                raise VolumeError(
                    f"This volume takes {format_bytes(needed)} of memory, and of the "
                    f"{format_bytes(self.limit)} for everybody {format_bytes(self.nbytes)} are taken; "
                    "open a smaller one, or come back when others have ended."
                )
            if over():
                keep.forget()

    def end(self, workspace: Workspace) -> None:
        """End a workspace and free its memory."""
        with self._lock:
            self._end(workspace, ENDED)

    def close(self) -> None:
        """End all workspaces."""
        with self._lock:
            for workspace in list(self._by_token.values()):
                self._end(workspace, ENDED)

    def _idle(self, keep: Workspace) -> list[Workspace]:
        """Return idle workspaces except `keep`, ordered by bytes x idle seconds, largest first."""
        now = self._clock()

        def cost(workspace: Workspace) -> float:
            array = workspace.array
            return (now - workspace.last_used) * (workspace.nbytes + (0 if array is None else array.nbytes))

        idle = [
            workspace
            for workspace in self._by_token.values()
            if workspace is not keep and now - workspace.last_used >= self.active_seconds
        ]
        return sorted(idle, key=cost, reverse=True)

    def _end(self, workspace: Workspace, reason: str) -> None:
        self._by_token.pop(workspace.token, None)
        self._reasons[workspace.token] = reason
        while len(self._reasons) > _REMEMBERED:
            self._reasons.popitem(last=False)
        workspace.close()

    def _evict_expired(self) -> None:
        oldest = self._clock() - self.idle_seconds
        while self._by_token:
            least_recent = next(iter(self._by_token.values()))
            if least_recent.last_used < oldest:
                self._end(least_recent, EXPIRED)
            elif len(self._by_token) > self.most:
                self._end(least_recent, EVICTED)
            else:
                return
