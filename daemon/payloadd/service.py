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

from payloadd.errors import SettingsError, StartError
from payloadd.heap import keep_small
from payloadd.ingress.admin import make_admin_app
from payloadd.ingress.api import make_app
from payloadd.ingress.fastpath.lane import FastPath
from payloadd.ingress.refusal_log import RefusalLog
from payloadd.ingress.request_memory import RequestMemory
from payloadd.ingress.server.server import ServerOptions, bound_addresses, open_listeners, serve
from payloadd.ingress.server.tls import open_certificates
from payloadd.ingress.submission import Submitter
from payloadd.journal.open import open_journal
from payloadd.observe.health import Health
from payloadd.observe.logs import get_logger
from payloadd.observe.metrics import Metrics
from payloadd.observe.status import drained_fields, status_line
from payloadd.open_files import ADMIN_CONNECTIONS
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.batching import Batcher
from payloadd.pipeline.dispatcher import dispatch
from payloadd.pipeline.intake import Intake
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder
from payloadd.pipeline.worker import Worker
from payloadd.storage.api import open_store
from payloadd.systemd.notify import Notifier, PassedSockets
from payloadd.systemd.watchdog import Monitored, monitoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from payloadd.config.settings import Settings
    from payloadd.ingress.server.tls import Certificates
    from payloadd.journal.open import OpenedJournal
    from payloadd.storage.api import Store

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
class Runtime:
    """What is there once in a process and shared by all its rooms."""

    settings: Settings
    health: Health
    metrics: Metrics
    accounting: Accounting
    notifier: Notifier
    passed: PassedSockets
    certificates: Certificates | None


async def run(settings: Settings) -> ExitStatus:
    """Run the daemon until it is told to stop, and return how that went.

    Raises SettingsError for what only shows when the parts are built.
    """
    health = Health()
    metrics = Metrics(health.snapshot)
    accounting = Accounting(metrics)
    health.payload_figures = accounting.figures
    certificates = open_certificates(settings)
    runtime = Runtime(
        settings, health, metrics, accounting, Notifier(), PassedSockets(), certificates
    )
    failed = False
    problems: list[str] = []
    try:
        await _live(runtime)
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
    if runtime.health.phase == "starting":
        return ExitStatus.INTERNAL_FAILURE
    health.phase = "drained"
    status = health.snapshot()
    log.info("drained", **drained_fields(status))
    runtime.notifier.status(status_line(status))
    if failed:
        return ExitStatus.INTERNAL_FAILURE
    return ExitStatus.LOST if status.lost else ExitStatus.DRAINED


async def _live(runtime: Runtime) -> None:
    """From the first socket to the last."""
    settings = runtime.settings
    stop = trio.Event()
    async with trio.open_nursery() as root:
        reloads, asked = trio.open_memory_channel[None](1)
        root.start_soon(_reload, runtime, asked)
        root.start_soon(keep_small)
        await root.start(_watch_signals, runtime, stop, root.cancel_scope, reloads)
        async with open_store(settings) as store:
            # The memory bound of the daemon, in jobs and in bytes.
            channel = JobChannel(settings.max_queue, settings.max_queue_bytes)
            runtime.health.queue_figures = channel.figures
            feeder = QueueFeeder(channel, runtime.accounting)
            listener = PipelineListener(channel, feeder, runtime.accounting, runtime.metrics)
            journal = open_journal(settings, listener, runtime.health, runtime.metrics)
            async with journal as opened:
                intake = Intake(opened.journal, runtime.health, settings)
                seen = Monitored(settings, runtime.health, opened.journal)
                watch = monitoring(seen, runtime.notifier)
                async with watch, _admin(runtime, intake) as admin, trio.open_nursery() as pipeline:
                    await _start_pipeline(runtime, pipeline, channel, feeder, opened, store)
                    await _serve_public(runtime, intake, stop, admin)
                    feeder.finish()
                    deadline = trio.current_time() + settings.drain_timeout
                    pipeline.cancel_scope.deadline = deadline
        root.cancel_scope.cancel()


async def _watch_signals(
    runtime: Runtime,
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
                log.info("draining", signal=name, open=runtime.accounting.open)
                runtime.health.phase = "draining"
                runtime.notifier.stopping()
                stop.set()


async def _reload(runtime: Runtime, asked: trio.MemoryReceiveChannel[None]) -> None:
    """Read again what SIGHUP is for; a file that hangs holds up nothing else."""
    async for _ in asked:
        if runtime.certificates is not None:
            read = runtime.certificates.read_again
            await trio.to_thread.run_sync(read, abandon_on_cancel=True)


@asynccontextmanager
async def _admin(runtime: Runtime, intake: Intake) -> AsyncIterator[list[str]]:
    """Serve the admin address for as long as the body runs; yields where it listens."""
    address = runtime.settings.admin_bind
    passed = runtime.passed.listeners(admin=True)
    if address is None and not passed:
        yield []
        return
    app = make_admin_app(intake, runtime.health, runtime.metrics)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        listeners = passed or await open_listeners([address] if address else [])
        await nursery.start(
            serve, app, listeners, runtime.settings, stop, ServerOptions(ADMIN_CONNECTIONS)
        )
        yield bound_addresses(listeners)
        stop.set()


async def _start_pipeline(
    runtime: Runtime,
    nursery: trio.Nursery,
    channel: JobChannel,
    feeder: QueueFeeder,
    opened: OpenedJournal,
    store: Store,
) -> None:
    settings = runtime.settings
    worker = Worker(
        store,
        opened.journal,
        runtime.accounting,
        runtime.health,
        runtime.metrics,
        settings.upload_timeout,
        channel.release,
    )
    batcher = Batcher(channel, opened.journal, opened.layouts, settings)
    await nursery.start(dispatch, batcher, worker, settings.max_workers)
    await nursery.start(feeder.refill, opened.journal)


async def _serve_public(
    runtime: Runtime, intake: Intake, stop: trio.Event, admin: list[str]
) -> None:
    """Take POSTs until ``stop``; returns when every request under way has been answered."""
    settings = runtime.settings
    memory = RequestMemory(settings.max_request_bytes, settings.max_length)
    submitter = Submitter(intake, runtime.health, settings, memory)
    refusals = RefusalLog()
    app = make_app(submitter, runtime.health, refusals)
    fast_path = FastPath(submitter, runtime.health, runtime.metrics, refusals)
    options = ServerOptions(
        settings.max_connections,
        fast_path,
        runtime.certificates,
        memory,
        runtime.metrics.count_request,
        refusals,
        settings.max_connections_per_client,
    )
    listeners = runtime.passed.listeners() or await open_listeners(settings.bind)
    async with trio.open_nursery() as helpers:
        helpers.start_soon(submitter.run)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, app, listeners, settings, stop, options)
            _quieten_the_collector()
            if runtime.health.phase == "starting":
                runtime.health.phase = "serving"
                runtime.notifier.ready()
            if not intake.durable:
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
