"""Who has which prefix: what workers tell of their caches, looked up by the hashes of a prompt.

A prefix is known by its landmarks (``services.kv.landmarks``). The answer is a good guess, no promise: a block may be
gone by the time it is asked for, and its owner then says so (``KV.Fetch``).
"""

from collections.abc import Iterable, Mapping, Sequence

from services.kv.hashes import BlockHash
from services.kv.landmarks import landmarks


class PrefixIndex:
    """The landmarks of all members; plain Python, no waiting.

    The members that have a landmark are the bits of one number, so that a lookup costs one step for each landmark of
    the prompt, however many members there are.
    """

    def __init__(self) -> None:
        self._holders: dict[BlockHash, int] = {}
        self._names_of: dict[str, set[BlockHash]] = {}
        self._bits: dict[str, int] = {}
        self._members: dict[int, str] = {}
        """By the place of their bit."""

    def update(self, member_id: str, *, added: Iterable[BlockHash], removed: Iterable[BlockHash]) -> None:
        """Take what a member says of its cache."""
        bit, names = self._bit(member_id), self._names_of.setdefault(member_id, set())
        for name in removed:
            if name in names:
                names.remove(name)
                self._drop(name, bit)
        for name in added:
            names.add(name)
            self._holders[name] = self._holders.get(name, 0) | bit

    def forget(self, member_id: str) -> None:
        """Forget all that a member said."""
        bit = self._bits.pop(member_id, 0)
        for name in self._names_of.pop(member_id, ()):
            self._drop(name, bit)
        if bit:
            del self._members[bit.bit_length() - 1]

    def overlaps(self, hashes: Sequence[BlockHash]) -> Mapping[str, int]:
        """Return for each member that has any how many of the blocks ``hashes``, from the first one on, it has."""
        found: dict[str, int] = {}
        present, num_blocks, holders_of = -1, 0, self._holders.get
        for index in landmarks(len(hashes)):
            still_present = holders_of(hashes[index], 0) & present
            if still_present != present:
                self._settle(found, present & ~still_present, hashes, num_blocks, index)
            present, num_blocks = still_present, index + 1
            if not present:
                return found
        self._settle(found, present, hashes, num_blocks, len(hashes))
        return found

    def _settle(
        self, found: dict[str, int], holders: int, hashes: Sequence[BlockHash], num_blocks: int, end: int
    ) -> None:
        """Note ``holders``, which have ``num_blocks`` blocks and perhaps the end of a sequence before block ``end``."""
        holders_of = self._holders.get
        for index in range(end - 1, num_blocks - 1, -1):
            if (known := holders_of(hashes[index])) and (ended := known & holders):
                self._note(found, ended, index + 1)
                holders &= ~ended
        if num_blocks:
            self._note(found, holders, num_blocks)

    def _note(self, found: dict[str, int], holders: int, num_blocks: int) -> None:
        while holders:
            bit = holders & -holders
            found[self._members[bit.bit_length() - 1]] = num_blocks
            holders ^= bit

    def _bit(self, member_id: str) -> int:
        if member_id not in self._bits:
            place = next(place for place in range(len(self._members) + 1) if place not in self._members)
            self._members[place] = member_id
            self._bits[member_id] = 1 << place
        return self._bits[member_id]

    def _drop(self, name: BlockHash, bit: int) -> None:
        if left := self._holders[name] & ~bit:
            self._holders[name] = left
        else:
            del self._holders[name]
