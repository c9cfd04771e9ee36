"""One list of members, and which of them fit what: found once for each list, not for each request."""

from collections.abc import Mapping, Sequence

from services.cluster.registry import Member, Role
from services.gateway.routing.candidates import Requirements, fits


class Roster:
    """Lasts as long as nobody comes, goes or changes."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.by_id: Mapping[str, Member] = {member.member_id: member for member in members}
        self._fitting: dict[tuple[Role, Requirements], Sequence[Member]] = {}

    def fitting(self, role: Role, wanted: Requirements) -> Sequence[Member]:
        """Return the members of a role that can take what is ``wanted``."""
        if (role, wanted) not in self._fitting:
            self._fitting[role, wanted] = [member for member in self.members if fits(member, role, wanted)]
        return self._fitting[role, wanted]
