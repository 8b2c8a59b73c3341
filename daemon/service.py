"""The composition root: opens everything in order and drains it in the reverse order.

The order of a drain is the order of the context managers in ``_live``, read from inside
out: the requests under way are answered, the channel is closed, the workers finish or meet
the deadline, the admin address (which answers to the end) closes, then the store.
"""

from __future__ import annotations

import gc
import signal
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from daemon.errors import SettingsError, StartError
from daemon.health import Health
from daemon.heap import keep_small
from daemon.ingress.admin import make_admin_app
from daemon.ingress.app import make_app
from daemon.ingress.door import Door
from daemon.ingress.plain import PlainLane
from daemon.ingress.refusals import RefusalLog
from daemon.ingress.request_memory import RequestMemory
from daemon.ingress.server import Front, bound_addresses, open_listeners, serve
from daemon.ingress.tls import open_certificates
from daemon.logs import get_logger
from daemon.metrics import Metrics
from daemon.open_files import ADMIN_CONNECTIONS
from daemon.pipeline.channel import JobChannel
from daemon.pipeline.dispatcher import dispatch
from daemon.pipeline.filler import Filler
from daemon.pipeline.intake import Intake
from daemon.pipeline.ledger import Ledger
from daemon.pipeline.opening import open_journal
from daemon.pipeline.worker import Worker
from daemon.storage.store import open_store
from daemon.systemd import Notifier, PassedSockets
from daemon.watch import Watched, watching

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from daemon.config import Settings
    from daemon.ingress.tls import Certificates
    from daemon.pipeline.opening import Opened
    from daemon.storage.store import Store

log = get_logger(__name__)

E = TypeVar("E", bound=BaseException)

_COLLECT_AFTER: Final = (5_000, 4, 250)
"""Containers more than were freed; collections of the youngest; of the middle-aged.

Beside HTTP/2 a collection of the middle-aged took 75 ms with 20 instead of 4; those of all objects
are as rare as before.
"""


class ExitStatus(IntEnum):
    """The contract's exit statuses; 2 is click's own."""

    DRAINED = 0
    INTERNAL_FAILURE = 1
    LOST = 75
    WRONG_SETTINGS = 78


@dataclass(frozen=True, slots=True)
class House:
    """What is there once in a process and shared by all its rooms."""

    settings: Settings
    health: Health
    metrics: Metrics
    ledger: Ledger
    notifier: Notifier
    passed: PassedSockets
    certificates: Certificates | None


async def run(settings: Settings) -> ExitStatus:
    """Run the daemon until it is told to stop, and return how that went.

    Raises SettingsError for what only shows when the parts are built.
    """
    metrics = Metrics()
    ledger = Ledger(metrics)
    certificates = open_certificates(settings)
    house = House(settings, Health(), metrics, ledger, Notifier(), PassedSockets(), certificates)
    failed = False
    problems: list[str] = []
    try:
        await _live(house)
    except* SettingsError as group:
        problems = [problem for error in _leaves(group) for problem in error.problems]
    except* StartError as group:
        failed = True
        for error in _leaves(group):
            log.critical("cannot_start", reason=str(error))
    except* Exception:
        failed = True
        log.critical("internal_failure", exc_info=True)
    if problems:
        raise SettingsError(problems)
    if house.health.phase == "starting":
        return ExitStatus.INTERNAL_FAILURE
    counts = {"stored": ledger.stored, "journaled": ledger.journaled, "lost": ledger.lost}
    log.info("drained", **counts)
    house.notifier.status("drained: " + ", ".join(f"{counts[it]} {it}" for it in counts))
    if failed:
        return ExitStatus.INTERNAL_FAILURE
    return ExitStatus.LOST if ledger.lost else ExitStatus.DRAINED


async def _live(house: House) -> None:
    """From the first socket to the last."""
    settings = house.settings
    stop = trio.Event()
    async with trio.open_nursery() as root:
        reloads, asked = trio.open_memory_channel[None](1)
        root.start_soon(_reload, house, asked)
        root.start_soon(keep_small)
        await root.start(_watch_signals, house, stop, root.cancel_scope, reloads)
        async with open_store(settings) as store:
            # The memory bound of the daemon, in jobs and in bytes.
            channel = JobChannel(settings.max_queue, settings.max_queue_bytes)
            journal = open_journal(settings, channel, house.ledger, house.health, house.metrics)
            async with journal as opened:
                intake = Intake(opened.journal, house.health, settings)
                seen = Watched(
                    settings, house.health, house.metrics, house.ledger, channel, opened.journal
                )
                watch = watching(seen, house.notifier)
                async with watch, _admin(house, intake) as admin, trio.open_nursery() as pipeline:
                    await _start_pipeline(house, pipeline, channel, opened, store)
                    await _serve_public(house, intake, stop, admin)
                    opened.window.finish()
                    deadline = trio.current_time() + settings.drain_timeout
                    pipeline.cancel_scope.deadline = deadline
        root.cancel_scope.cancel()


async def _watch_signals(
    house: House,
    stop: trio.Event,
    everything: trio.CancelScope,
    reloads: trio.MemorySendChannel[None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Drain on the first SIGTERM or SIGINT, stop at once on the second; reload on SIGHUP."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                log.info("reload", signal=name)
                with suppress(trio.WouldBlock):  # one that waits is enough
                    reloads.send_nowait(None)
            elif stop.is_set():
                log.warning("stopping_at_once", signal=name)
                everything.cancel()
            else:
                log.info("draining", signal=name, open=house.ledger.open)
                house.health.phase = "draining"
                house.metrics.draining.set(1)
                house.notifier.stopping()
                stop.set()


async def _reload(house: House, asked: trio.MemoryReceiveChannel[None]) -> None:
    """Read again what SIGHUP is for; a file that hangs holds up nothing else."""
    async for _ in asked:
        if house.certificates is not None:
            read = house.certificates.read_again
            await trio.to_thread.run_sync(read, abandon_on_cancel=True)


@asynccontextmanager
async def _admin(house: House, intake: Intake) -> AsyncIterator[list[str]]:
    """Serve the admin address for as long as the body runs; yields where it listens."""
    address = house.settings.admin_bind
    passed = house.passed.listeners(admin=True)
    if address is None and not passed:
        yield []
        return
    app = make_admin_app(intake, house.health, house.metrics)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        listeners = passed or await open_listeners([address] if address else [])
        await nursery.start(serve, app, listeners, house.settings, stop, Front(ADMIN_CONNECTIONS))
        yield bound_addresses(listeners)
        stop.set()


async def _start_pipeline(
    house: House, nursery: trio.Nursery, channel: JobChannel, opened: Opened, store: Store
) -> None:
    settings = house.settings
    house.metrics.queue_jobs.set_function(lambda: channel.jobs)
    house.metrics.queue_bytes.set_function(lambda: channel.bytes)
    worker = Worker(
        store,
        opened.journal,
        house.ledger,
        house.health,
        house.metrics,
        settings.upload_timeout,
        channel.release,
    )
    filler = Filler(channel, opened.journal, opened.layouts, settings)
    await nursery.start(dispatch, filler, worker, settings.max_workers)
    await nursery.start(opened.window.refill, opened.journal)


async def _serve_public(house: House, intake: Intake, stop: trio.Event, admin: list[str]) -> None:
    """Take POSTs until ``stop``; returns when every request under way has been answered."""
    settings = house.settings
    memory = RequestMemory(settings.max_request_bytes, settings.max_length)
    door = Door(intake, house.health, settings, memory)
    refusals = RefusalLog()
    app = make_app(door, house.health, refusals)
    lane = PlainLane(door, house.health, house.metrics, refusals)
    front = Front(
        settings.max_connections,
        lane,
        house.certificates,
        memory,
        house.metrics.count_request,
        refusals,
        settings.max_connections_per_client,
    )
    listeners = house.passed.listeners() or await open_listeners(settings.bind)
    async with trio.open_nursery() as helpers:
        helpers.start_soon(door.run)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, app, listeners, settings, stop, front)
            _quieten_the_collector()
            if house.health.phase == "starting":
                house.health.phase = "serving"
                house.notifier.ready()
            if settings.durability == "memory":
                log.warning("durability_memory", note="what is queued is lost if the process dies")
            log.info("listening", public=bound_addresses(listeners), admin=next(iter(admin), None))
        helpers.cancel_scope.cancel()
    refusals.finish()


def _quieten_the_collector() -> None:
    """Leave what the start has made out of garbage collections, and have fewer of them.

    Payloads make no cycles and go by their reference counts; what collections cost was to look
    at all modules and all queued jobs again and again: 10 % of the CPU, and pauses of 45 to
    85 ms that were the 99th percentile of an answer at half the peak rate (then 2 ms).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def _leaves(group: BaseExceptionGroup[E]) -> Iterator[E]:
    """Yield the exceptions of a group, however deep they lie."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
