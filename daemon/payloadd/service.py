"""The composition root: open every part in order, and drain the parts in the reverse order.

The order of a drain is the order of the context managers in ``_run_parts``, read from inside out:
requests under way are answered, the queue is closed, the workers finish or reach the deadline, the
admin address closes (it answers until then), then the journal and the store close.
"""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from payloadd.errors import SettingsError, StartError, StateDirError
from payloadd.exit_status import ExitStatus
from payloadd.heap import keep_small, reduce_garbage_collections
from payloadd.ingress.admin import make_admin_app
from payloadd.ingress.admission import open_admission
from payloadd.ingress.api import description_of, make_app
from payloadd.ingress.fastpath.fast_path import FastPath
from payloadd.ingress.refusal_log import RefusalLog
from payloadd.ingress.request_memory import RequestMemory
from payloadd.ingress.routes import Routes
from payloadd.ingress.server.server import (
    ServerOptions,
    bound_addresses,
    open_listeners,
    public_addresses,
    serve,
)
from payloadd.ingress.server.tls import open_certificates
from payloadd.ingress.status_page import Shown
from payloadd.ingress.submission import Submitter
from payloadd.journal.open import dead_letter_groups, open_journal
from payloadd.model.formats.configuration import open_formats
from payloadd.observe.dead_letter_figures import DeadLetterFigures
from payloadd.observe.health import Health
from payloadd.observe.history import History
from payloadd.observe.logs import get_logger
from payloadd.observe.metrics import Metrics
from payloadd.observe.put_cost import put_cost_of
from payloadd.observe.state_gauges import StateGauges
from payloadd.observe.status import (
    drained_fields,
    draining_fields,
    status_line,
    wrong_settings_line,
)
from payloadd.observe.status_document import Facts, start_fields
from payloadd.open_files import ADMIN_CONNECTIONS
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.batching import Batcher
from payloadd.pipeline.dispatcher import dispatch
from payloadd.pipeline.intake import Intake
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.open_watermarks import watermarks_of
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder
from payloadd.pipeline.unstored import attach_unstored
from payloadd.pipeline.worker import Worker
from payloadd.reloading import reloading
from payloadd.storage.api import open_store
from payloadd.systemd.notify import Notifier, PassedSockets
from payloadd.systemd.watchdog import WatchedParts, reporting_to_systemd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from payloadd.config.settings import Settings
    from payloadd.ingress.admission import Admission
    from payloadd.ingress.server.tls import Certificates
    from payloadd.journal.open import OpenedJournal
    from payloadd.storage.api import Store

log = get_logger(__name__)

E = TypeVar("E", bound=BaseException)

_OPEN_NOTE: Final = (
    "every client that reaches these addresses may post; set AUTH_TOKENS (`payloadd token NAME`"
    " makes a line of it) or TLS_CLIENT_CA, or a loopback address in BIND"
)
_DRAIN_REPORT_INTERVAL: Final = 3.0
"""Seconds between two lines of the log during a drain."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """The objects that a process has once and that its parts share."""

    settings: Settings
    health: Health
    metrics: Metrics
    accounting: Accounting
    notifier: Notifier
    passed: PassedSockets
    certificates: Certificates | None
    admission: Admission | None


async def run(settings: Settings) -> ExitStatus:
    """Run the daemon until a signal stops it; returns the exit status.

    Raises SettingsError if building the parts shows that settings are wrong.
    """
    health = Health()
    metrics = Metrics(health.snapshot)
    accounting = Accounting(metrics)
    health.payload_figures = accounting.figures
    limit = settings.journal_max_bytes if settings.durability == "disk" else None
    metrics.registry.register(StateGauges(health.snapshot, limit))
    # Before the notifier, which takes its address from the environment: the caller reports errors.
    certificates, admission = open_certificates(settings), open_admission(settings)
    figures = (settings, health, metrics, accounting)
    runtime = Runtime(*figures, Notifier(), PassedSockets(), certificates, admission)
    failed = unusable = False
    problems: list[str] = []
    try:
        await _run_parts(runtime)
    except* SettingsError as group:
        problems = [problem for error in _leaves(group) for problem in error.problems]
    except* StartError as group:
        failed = True
        for error in _leaves(group):
            unusable |= isinstance(error, StateDirError)
            log.critical("cannot_start", reason=str(error))
            runtime.notifier.status(f"cannot start: {error}")
    except* Exception:
        failed = True
        log.critical("internal_failure", exc_info=True)
    if problems:
        runtime.notifier.status(wrong_settings_line(problems))
        raise SettingsError(problems)
    if runtime.health.phase == "starting":
        return ExitStatus.WRONG_SETTINGS if unusable else ExitStatus.INTERNAL_FAILURE
    health.phase = "drained"
    status = health.snapshot()
    log.info("drained", **drained_fields(status))
    runtime.notifier.status(status_line(status))
    if failed:
        return ExitStatus.INTERNAL_FAILURE
    return ExitStatus.LOST if status.lost else ExitStatus.DRAINED


async def _run_parts(runtime: Runtime) -> None:
    """Open the parts, serve requests until a signal, and drain."""
    settings = runtime.settings
    stop = trio.Event()
    async with trio.open_nursery() as root:
        reload_sender, reload_requests = trio.open_memory_channel[None](1)
        root.start_soon(keep_small)
        root.start_soon(_report_drain, runtime, stop)
        root.start_soon(put_cost_of(settings, runtime.metrics, runtime.health).run)
        await root.start(_handle_signals, runtime, stop, root.cancel_scope, reload_sender)
        formats = open_formats(settings)
        files = [part for part in (runtime.certificates, runtime.admission) if part is not None]
        reload_all = partial(reloading, settings, files, reload_requests)
        async with formats, open_store(settings) as store, reload_all(store):
            # The bound on jobs and payload bytes in memory, all streams together.
            channel = JobChannel(settings.max_queue, settings.max_queue_bytes)
            runtime.health.queue_figures = channel.figures
            runtime.health.credentials_expire = store.credentials_expire
            feeder = QueueFeeder(channel, runtime.accounting)
            listener = PipelineListener(channel, feeder, runtime.accounting, runtime.metrics)
            journal = open_journal(settings, listener, runtime.health, runtime.metrics)
            async with journal as opened:
                if settings.streams:
                    runtime.accounting.stream_names = opened.names
                    runtime.metrics.name_streams(opened.names, runtime.accounting.streams)
                watermarks = watermarks_of(
                    settings,
                    runtime.accounting,
                    partial(dead_letter_groups, settings),
                    store,
                    opened.names,
                    opened.journal.pulse,
                    opened.lanes,
                )
                intake = Intake(
                    opened.journal,
                    runtime.health,
                    settings,
                    runtime.accounting.uploads,
                    opened.unstored,
                    watermarks.in_flight,
                )
                watched = WatchedParts(settings, runtime.health, opened.journal)
                monitor = reporting_to_systemd(watched, runtime.notifier)
                admin_app = _serve_admin(runtime, intake)
                writing = watermarks.written(stop)
                async with monitor, admin_app as admin, writing, trio.open_nursery() as pipeline:
                    batcher = await _start_pipeline(
                        runtime, pipeline, channel, feeder, opened, store
                    )
                    began = await _serve_public(runtime, opened, intake, stop, admin, batcher)
                    feeder.finish()
                    if not intake.durable:  # payloads of the last requests would be lost
                        began = trio.current_time()
                    pipeline.cancel_scope.deadline = began + settings.drain_timeout
        root.cancel_scope.cancel()


async def _handle_signals(
    runtime: Runtime,
    stop: trio.Event,
    process: trio.CancelScope,
    reload_sender: trio.MemorySendChannel[None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Drain after the first SIGTERM or SIGINT, cancel all after the second; reload after SIGHUP."""
    stopping = False
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async with trio.open_nursery() as nursery:
            async for number in signals:
                name = signal.Signals(number).name
                if number == signal.SIGHUP:
                    log.info("reload", signal=name)
                    with suppress(trio.WouldBlock):  # another reload is waiting to begin
                        reload_sender.send_nowait(None)
                elif stopping:
                    log.warning("stopping_at_once", signal=name)
                    process.cancel()
                else:
                    stopping = True
                    log.info(
                        "draining",
                        signal=name,
                        open=runtime.accounting.open,
                        delay=runtime.settings.drain_delay,
                    )
                    nursery.start_soon(_begin_drain, runtime, stop)


async def _begin_drain(runtime: Runtime, stop: trio.Event) -> None:
    """Set ``stop`` after DRAIN_DELAY: balancers have seen by then that the daemon is not ready."""
    delay = runtime.settings.drain_delay
    runtime.notifier.stopping()
    if delay:
        runtime.health.phase = "leaving"
        await trio.sleep(delay)
    runtime.health.phase = "draining"
    stop.set()


async def _report_drain(runtime: Runtime, stop: trio.Event) -> None:
    """Log the remaining work of a drain every few seconds, with the reason for which it waits."""
    await stop.wait()
    while True:
        await trio.sleep(_DRAIN_REPORT_INTERVAL)
        log.info("still_draining", **draining_fields(runtime.health.snapshot()))


@asynccontextmanager
async def _serve_admin(runtime: Runtime, intake: Intake) -> AsyncIterator[list[str]]:
    """Serve the admin address while the body runs; yields the addresses it listens on."""
    address = runtime.settings.admin_bind
    passed = runtime.passed.listeners(admin=True)
    if address is None and not passed:
        yield []
        return
    history = History(runtime.health.snapshot, runtime.metrics.timings)
    dead_letters = DeadLetterFigures(partial(dead_letter_groups, runtime.settings))
    facts = Facts.of(runtime.settings, history.started)
    shown = Shown(history, facts, dead_letters)
    app = make_admin_app(intake, runtime.health, runtime.metrics, runtime.settings, shown)
    stop = trio.Event()
    async with trio.open_nursery() as sampling, trio.open_nursery() as nursery:
        sampling.start_soon(history.run)
        sampling.start_soon(dead_letters.run)
        listeners = passed or await open_listeners([address] if address else [])
        options = ServerOptions(ADMIN_CONNECTIONS, count=runtime.metrics.requests.count)
        await nursery.start(serve, app, listeners, runtime.settings, stop, options)
        yield bound_addresses(listeners)
        stop.set()
        sampling.cancel_scope.cancel()


async def _start_pipeline(
    runtime: Runtime,
    nursery: trio.Nursery,
    channel: JobChannel,
    feeder: QueueFeeder,
    opened: OpenedJournal,
    store: Store,
) -> Batcher:
    """Start the dispatcher with its workers, and the task that refills the queue."""
    settings = runtime.settings
    worker = Worker(
        store,
        opened.journal,
        runtime.accounting,
        runtime.health,
        runtime.metrics,
        channel,
        settings,
    )
    batcher = Batcher(channel, opened.layouts, settings, worker.admission, feeder)
    if opened.unstored is not None:
        attach_unstored(opened.unstored, batcher, worker, store, settings)
    await nursery.start(dispatch, batcher, worker)
    await nursery.start(feeder.refill, opened.journal)
    return batcher


async def _serve_public(
    runtime: Runtime,
    opened: OpenedJournal,
    intake: Intake,
    stop: trio.Event,
    admin: list[str],
    batcher: Batcher,
) -> float:
    """Accept POSTs until ``stop`` is set; return when all requests under way are answered.

    Those that wait for their upload are answered once it is done: no batch lingers meanwhile.
    Returns the time at which ``stop`` was set, by trio's clock.
    """
    settings = runtime.settings
    memory = RequestMemory(settings.max_request_bytes, settings.max_length)
    routes = Routes(opened.streams)
    submitter = Submitter(intake, runtime.health, settings, memory, runtime.admission, routes)
    refusals = RefusalLog()
    app = make_app(submitter, runtime.health, refusals, settings)
    fast_path = FastPath(submitter, runtime.health, runtime.metrics, refusals, description_of(app))
    options = ServerOptions(
        settings.max_connections,
        fast_path,
        runtime.certificates,
        memory,
        runtime.metrics.requests.count,
        refusals,
        settings.max_connections_per_client,
        settings.trusted_proxies or (),
        proxy_headers=settings.client_address == "proxy",
        cors=submitter.cors,
        metrics=runtime.metrics.requests,
    )
    listeners = runtime.passed.listeners() or await open_listeners(settings.bind)
    async with trio.open_nursery() as helpers:
        helpers.start_soon(submitter.run)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, app, listeners, settings, stop, options)
            reduce_garbage_collections()
            if runtime.health.phase == "starting":
                runtime.health.phase = "serving"
                runtime.notifier.ready()
            if not intake.durable:
                log.warning("durability_memory", note="queued payloads are lost on a crash")
            _warn_if_open(settings, listeners)
            if runtime.admission is not None and runtime.admission.tokens is not None:
                runtime.admission.tokens.warn_of_unknown_streams()
            log.info(
                "listening",
                public=bound_addresses(listeners),
                admin=next(iter(admin), None),
                **start_fields(settings),
            )
            await stop.wait()
            began = trio.current_time()
            batcher.end_linger()
            longest = min(settings.drain_timeout, settings.request_timeout)
            intake.wait_no_longer_than(longest)
        helpers.cancel_scope.cancel()
    refusals.finish()
    return began


def _warn_if_open(settings: Settings, listeners: list[trio.SocketListener]) -> None:
    """Log a warning if other machines reach the public address, and no client is checked."""
    if settings.auth_tokens is None and settings.tls_client_ca is None:
        open_to = public_addresses(listeners)
        if open_to:
            log.warning("open_to_all", addresses=open_to, note=_OPEN_NOTE)


def _leaves(group: BaseExceptionGroup[E]) -> Iterator[E]:
    """Yield the exceptions of a group and of the groups nested in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
