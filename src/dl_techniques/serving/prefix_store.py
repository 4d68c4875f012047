"""PrefixStore: the caches of conversations whose next turn may come."""

from collections import OrderedDict

from dl_techniques.generation.prompts import Prompt
from dl_techniques.generation.session import Session, image_spans


class PrefixStore:
    """Sessions by client, the ones used last, up to a number of bytes.

    No client's prompt is ever compared with another's: how long an answer takes tells nothing of
    what others asked.

    Args:
        max_bytes: Sessions used longest ago are dropped beyond it.
    """

    def __init__(self, max_bytes: int):
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes} must be at least 0.")
        self._max_bytes = max_bytes
        # The one used longest ago comes first, of all and of each client.
        self._owners: OrderedDict[Session, str] = OrderedDict()
        self._sessions: dict[str, OrderedDict[Session, None]] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._owners)

    def take(self, model, client: str, prompt: Prompt) -> Session:
        """Return the session, no longer in the store, with which a prompt shares the most.

        It is a new one if the prompt shares less than half of each: the beginning that all
        conversations have is no reason to lose one.
        """
        best, most, spans = None, 0, image_spans(model, prompt)
        for session in self._sessions.get(client, ()):
            if not session.may_share_half(prompt.ids, spans):
                continue
            shared = session.shared(model, prompt, spans)
            if shared > most and 2 * shared >= session.known:
                best, most = session, shared
        if best is None:
            return Session()
        self._drop(best)
        return best

    def put(self, client: str, session: Session) -> None:
        """Keep a session whose turn is finished."""
        if session.nbytes > self._max_bytes:
            return
        self._owners[session] = client
        self._sessions.setdefault(client, OrderedDict())[session] = None
        self.nbytes += session.nbytes
        while self.nbytes > self._max_bytes:
            self._drop(next(iter(self._owners)))

    def _drop(self, session):
        client = self._owners.pop(session)
        own = self._sessions[client]
        del own[session]
        if not own:
            del self._sessions[client]
        self.nbytes -= session.nbytes
