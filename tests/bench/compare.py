"""Compare the peers: each under each work, round after round."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.load import Drive, Work
from tests.bench.measure import measure
from tests.bench.peers import BATCHED, IN_MEMORY, PEERS
from tests.bench.peers.others import GO
from tests.bench.report import Section, comparison_row, difference, per_work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.bench.measure import Result
    from tests.bench.peers.peer import Peer

WORKS: Final = {
    "single": Work("one payload of 200 bytes a POST", 1, 200),
    "hundred": Work("100 payloads of 200 bytes a POST", 100, 200),
    "large": Work("one payload of 64 KiB a POST", 1, 64 * 1024),
}


async def compare(
    peers: Sequence[Peer],
    works: Sequence[Work],
    drive: Drive,
    rounds: int,
    report: Callable[[str], object],
    most_payloads: int = 10_000,
) -> list[Result]:
    """Measure each peer under each work, ``rounds`` times; the peers of a work run one by one.

    A peer that stores one object a payload gets at most ``most_payloads``: some peers accept far
    faster than they store, and would run for minutes.
    """
    results = []
    for work in works:
        for number in range(1, rounds + 1):
            for peer in peers:
                result = await _one(peer, work, drive, most_payloads)
                report(
                    f"{work.name}, round {number}, {peer.name}: {result.cpu_us:.1f} µs a payload"
                )
                results.append(result)
    return results


async def _one(peer: Peer, work: Work, drive: Drive, most_payloads: int) -> Result:
    most_posts = None if peer.batched else max(1, most_payloads // work.payloads_per_post)
    drive = Drive(drive.connections, drive.seconds, most_posts)
    with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as folder:
        return await measure(peer, work, drive, Path(folder))


def sections(results: Sequence[Result]) -> list[Section]:
    """Return a table for each work."""
    return [_section(work, by_peer) for work, by_peer in per_work(results).items()]


def _section(work: str, by_peer: Mapping[str, Sequence[Result]]) -> Section:
    peers = {peer.name: peer for peer in PEERS.values()}
    results = [one for rounds in by_peer.values() for one in rounds]
    base = by_peer.get(GO.name, [])
    others = max(one.others_cores for one in results)
    about = (
        f"{results[0].drive.connections} connections; CPU of the whole process tree from the first"
        " POST until the last payload is stored. Medians of the rounds; the ratio is the median of"
        " the ratios within a round. The store got every payload. The generator and the store,"
        f" which are not counted, took {others:.2f} of a core at most."
    )
    if {BATCHED.name, IN_MEMORY.name} <= by_peer.keys():
        cost = difference(by_peer[BATCHED.name], by_peer[IN_MEMORY.name])
        about += f" The journal costs {cost:.1f} µs of CPU a payload (batched, within a round)."
    return Section(
        work[:1].upper() + work[1:],
        about,
        [comparison_row(peers[name], rounds, base) for name, rounds in by_peer.items()],
        [asdict(one) | {"cpu_us": one.cpu_us} for one in results],
    )
